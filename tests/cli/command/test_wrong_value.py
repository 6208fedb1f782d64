"""What a user reads who gives an option a value of the wrong type."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.cli.command.help_page import list_options
from lit_pretrain.cli.command.parser import VerbParser
from lit_pretrain.cli.command.verb import Verb, parser_of
from lit_pretrain.cli.train.own_parts import PARTS, _classes_of
from tests.test_cli import COMMANDS

TYPES = re.compile(r"Parser key|<class|typing\.|Union|NestedArg|Literal\[|dot import path")
"""How jsonargparse speaks of options and of Python's types."""


def wrong_values(parser: VerbParser, seen: set[str]) -> Iterator[str]:
    """Name one option of each new kind that cannot take the word zz."""
    for option in list_options(parser):
        plain = option.flag.startswith("--") and "NAME" not in option.name
        free = re.search(r"TEXT(?!, \.\.\.)|CLASS|VALUE|^true\|false$", option.kind)
        new = option.kind not in seen
        if plain and not free and new and re.search(r"INT|FLOAT|[{[|]", option.kind):
            seen.add(option.kind)
            yield option.name


def test_every_kind_of_option_says_in_one_line_what_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = []
    kinds: set[str] = set()
    for command, verb in COMMANDS.items():
        if command in ("posttrain", "finetune") or not isinstance(verb, Verb):
            continue  # they have the options of fit
        parser = parser_of(verb)
        if not isinstance(parser, VerbParser):
            continue  # doctor's, of the standard library
        for name in wrong_values(parser, kinds):
            with pytest.raises(SystemExit) as stop:
                parser.parse_args([f"--{name}=zz"])
            lines = capsys.readouterr().err.splitlines()
            if (
                stop.value.code != 2 or len(lines) != 2 or TYPES.search(lines[0])
                or not lines[0].startswith(f"error: {name}=zz must ")
            ):  # fmt: skip
                wrong.append((command, name, lines))
    assert wrong == []
    assert len(kinds) > 40


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("fit --max_steps 1e3", "max_steps=1e3 must be a whole number. Write 1000."),
        ("fit --model.schedule.kind linar", "must be one of constant, cosine, linear, wsd."
         " Did you mean 'linear'?"),
        ("fit --trainer.precision fp16", "trainer.precision=fp16 must be bf16-mixed, 32-true or"),
        ("fit --model.optimizer AdamW --model.optimizer.lr=fast", "model.optimizer.lr=fast must be"
         " a number."),
        ("scaling isoflop --budgets 1e9 x", "budgets=x must be a number."),
        ("fit --config {file}", "{file}: data.seq_len=two must be a whole number."),
        ("fit --data ChatData --data.sources rows.jsonl", "data.sources=rows.jsonl"
         " must have the form {{NAME: {{path: TEXT, ...}}}}."),
        ("prepare --out x --sources.mine.path texts", "sources: kind is missing; the form is"
         " {{NAME: {{kind: TEXT, ...}}}}"),
        ("prepare --out x --tokenizer bpe", "tokenizer=bpe must have the form {{kind:"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_where_it_stands(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  seq_len: two\n")
    with pytest.raises(SystemExit) as stop:
        main(given.format(file=file).split())
    assert stop.value.code == 2
    assert said.format(file=file) in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("fit mine", "The name of an option stands before its value: --NAME 'mine'"),
        ("fit runs/a", "This verb reads the config of a run: --config runs/a/config.yaml"),
        ("plan --run runs/a", "This verb reads the config of a run: --config runs/a/config.yaml"),
        ("inspect batch --run=runs/a", "reads the config of a run: --config runs/a/config.yaml"),
        ("fit --sharded_checkpoints perhaps", "--sharded_checkpoints takes true or false."),
        ("join --out o data/a", "It is given by its place: lit_pretrain join OUT DATASETS"),
        ("generate runs/a hello", "stands before its value: --NAME 'hello'"),
        ("fit --config runs/b.yaml", "--config runs/b.yaml does not exist (relative paths start"),
        ("fit --config my_fiel.yaml", "Did you mean 'my_file.yaml'?"),
        ("fit --config runs/a", "is a folder; give one of its files: runs/a/config.yaml"),
        ("fit --config runs", "--config runs is a folder; give a YAML file"),
        ("fit --config=", "--config needs the path of a YAML file"),
    ],
)
def test_a_value_without_its_option_and_a_missing_config_are_explained(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    for file in ("runs/a/config.yaml", "my_file.yaml"):
        (tmp_path / file).write_text("max_steps: 1\n")
    with pytest.raises(SystemExit) as stop:
        main(given.split())
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_data_of_ours_is_named_without_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ChatData", "PreferenceData", "KTOData", "StepwiseData", "PromptData"):
        assert main(["fit", "--data", name]) == 2
        assert "data needs files of rows" in capsys.readouterr().err
    for setting, part in PARTS.items():
        assert part.home is None or _classes_of(part), setting
