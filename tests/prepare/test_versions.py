"""Versions: all that a config uses is named, and another version is seen."""

import importlib.metadata
import platform
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.prepare.dedup.dedup_config import DedupConfig, LinesConfig, NearConfig
from lit_pretrain.prepare.filters.filter_spec import FILTERS, FilterSpec
from lit_pretrain.prepare.pii.redact import PiiConfig
from lit_pretrain.prepare.prepare_config import PrepareConfig, SourceConfig
from lit_pretrain.prepare.versions import version_difference, versions

ALWAYS = {
    "lit_pretrain",
    "python",
    "unicode",
    "numpy",
    "pyarrow",
    "regex",
    "tiktoken",
    "tokenizers",
    "xxhash",
}


def config(kind: Any = "text", **fields: Any) -> PrepareConfig:
    return PrepareConfig(out="x", sources={"a": SourceConfig(kind=kind, path="x")}, **fields)


def test_what_every_config_uses() -> None:
    found = versions(config())
    assert set(found) == ALWAYS
    assert (found["python"], found["unicode"]) == (
        platform.python_version(),
        unicodedata.unidata_version,
    )
    assert found["pyarrow"] == importlib.metadata.version("pyarrow")


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        (config(pii=PiiConfig()), {"publicsuffixlist", "phonenumberslite"}),
        (config(pii=PiiConfig(kinds=["card"])), set()),
        (config("warc"), {"lxml", "trafilatura", "warcio"}),
        (config("html"), {"lxml", "trafilatura"}),
        (config(dedup=DedupConfig(near=NearConfig())), {"rensa"}),
        (
            config(filters=[FilterSpec(class_path="Language", init_args={"keep": ["en"]})]),
            {"py3langid"},
        ),
        (
            config(filters=[FilterSpec(class_path="Url", init_args={"datatrove_lists": True})]),
            {"datatrove"},
        ),
        (config(filters=[FilterSpec(class_path="Url", init_args={"words": ["x"]})]), set()),
        (config(filters=["gopher", "yaml.safe_load"]), {"PyYAML", "icu4py"}),
        (config(filters=["C4"]), {"icu4py"}),
        (config(dedup=DedupConfig(near=None, lines=LinesConfig())), {"icu4py"}),
    ],
)
def test_what_this_config_uses(asked: PrepareConfig, more: set[str]) -> None:
    found = versions(asked)
    assert set(found) - ALWAYS == more
    assert all(found[name] == importlib.metadata.version(name) for name in more)


def test_a_filter_of_ones_own_counts_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ones_own_filters.py").write_text("def keep(document, view): return True\n")
    asked = config(filters=["ones_own_filters.keep"])
    first = versions(asked)
    assert first["module ones_own_filters"].startswith("sha256:")
    assert not version_difference(first)
    (tmp_path / "ones_own_filters.py").write_text("def keep(document, view): return False\n")
    assert versions(asked) != first
    assert version_difference(first).startswith("module ones_own_filters is sha256:")
    assert "ones_own_filters" not in sys.modules, "looking at it does not run it"


@pytest.mark.parametrize("class_path", ["Classifier", FILTERS["Classifier"]])
def test_a_classifier_counts_by_its_file(class_path: str, classifier_file: Path) -> None:
    asked = config(
        filters=[
            FilterSpec(
                class_path=class_path, init_args={"path": str(classifier_file), "threshold": 0.5}
            )
        ]
    )
    assert set(versions(asked)) - ALWAYS == {f"file {classifier_file}"}


def test_the_lists_of_a_filter_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("bad\n")
    asked = config(
        filters=[
            FilterSpec(class_path="Url", init_args={"word_files": [str(tmp_path / "words.txt")]})
        ]
    )
    first = versions(asked)
    assert set(first) - ALWAYS == {f"file {tmp_path / 'words.txt'}"}
    (tmp_path / "words.txt").write_text("worse\n")
    assert versions(asked) != first
    assert "words.txt is sha256:" in version_difference(first)


def test_another_machine_is_told_apart() -> None:
    here = versions(config())
    assert not version_difference(here)
    assert (
        version_difference(here | {"tokenizers": "0.1", "unicode": "1.0"})
        == f"unicode is {unicodedata.unidata_version} here, 1.0 there, tokenizers is"
        f" {here['tokenizers']} here, 0.1 there"
    )
