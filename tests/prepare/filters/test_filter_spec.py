"""FilterSpec: how a list of filters is read from a config, and written back."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.prepare.filters.filter import Chain
from lit_pretrain.prepare.filters.filter_spec import FilterEntry, FilterSpec


@dataclass(kw_only=True)
class Config:
    """A config with filters."""

    filters: list[FilterEntry] = field(default_factory=list)
    """In their order."""


YAML = """
filters:
  - gopher
  - {class_path: Url, init_args: {domains: [example.org], words: [spam]}}
  - class_path: C4
    init_args:
      min_sentences: null
  - {class_path: mine.Filter}
  - class_path: GopherRepetition
    init_args: {top_ngrams: {2: 0.5}}
"""
EXPECTED = [
    "gopher",
    FilterSpec(class_path="Url", init_args={"domains": ["example.org"], "words": ["spam"]}),
    FilterSpec(class_path="C4", init_args={"min_sentences": None}),
    FilterSpec(class_path="mine.Filter"),
    FilterSpec(class_path="GopherRepetition", init_args={"top_ngrams": {2: 0.5}}),
]


@pytest.fixture
def parser() -> ArgumentParser:
    parser = make_parser("test")
    parser.add_class_arguments(Config)
    return parser


def test_from_yaml_and_back(parser: ArgumentParser, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(YAML, encoding="utf-8")
    read = parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    assert parser.instantiate(read).filters == EXPECTED
    saved = parser.dump(read)
    assert yaml.safe_load(saved)["filters"][1] == {
        "class_path": "Url",
        "init_args": {"domains": ["example.org"], "words": ["spam"]},
    }
    assert parser.instantiate(parser.parse_string(saved)).filters == EXPECTED, (
        "what is saved reads the same"
    )


def test_from_the_command_line(parser: ArgumentParser) -> None:
    arguments = ["--filters=[gopher]", "--filters+={class_path: C4, init_args: {min_sentences: 3}}"]
    entries = parser.instantiate(parser.parse_args(arguments)).filters
    assert entries == ["gopher", FilterSpec(class_path="C4", init_args={"min_sentences": 3})]
    assert Chain(entries).names == ["GopherRepetition", "GopherQuality", "C4"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{class_path: C4, init_arg: {}}", "Did you mean 'init_args'"),
        ("{init_args: {}}", "needs class_path"),
        ("{class_path: C4, init_args: [3]}", "init_args of C4 must map"),
    ],
)
def test_what_is_no_spec(
    parser: ArgumentParser,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    entry: str,
    message: str,
) -> None:
    (tmp_path / "config.yaml").write_text(f"filters:\n  - {entry}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    assert message in capsys.readouterr().err
