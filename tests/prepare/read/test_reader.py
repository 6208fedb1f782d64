"""A reader is one class: one from outside the package works by its class path, as ours do."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.corpus.chunk_reader import find_text
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.prepare_config import PrepareConfig, SourceConfig
from lit_pretrain.prepare.read.reader import READERS, FileReader, reader_class
from lit_pretrain.prepare.versions import versions
from lit_pretrain.tokenizer.tokenizer import Tokenizer

LOGBOOK = '''"""Logbooks: an entry is a document; its date stands in its first line."""

from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.prepare.read.reader import FileReader
from lit_pretrain.prepare.read.reader import BadRecord, RawText


class LogbookReader(FileReader):
    """Read entries with a separator between them."""

    suffixes = (".log", ".book")
    options = (*FileReader.options, "separator")
    required = ("path", "separator")
    packages = ("xxhash", "zstandard")

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord]:
        """See `FileReader`."""
        for number, entry in enumerate(path.read_text().split(self.source.separator), start=1):
            date, _, text = entry.strip().partition("\\n")
            if text:
                yield RawText(f"{name}:{number}", text, {"date": date})
            else:
                yield BadRecord.of(f"{name}:{number}", "no_entry", "no text after the date", entry)


class Since:
    """Remove entries before a day."""

    def __init__(self, *, date: str) -> None:
        self.date = date

    def __call__(self, document, view):
        return document.fields["date"] >= self.date, "too_early"
'''


@pytest.fixture
def logbooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of logbooks, and a module `logbook` that reads them, outside lit_pretrain."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "logbook.py").write_text(LOGBOOK)
    (tmp_path / "raw").mkdir()
    for day in range(1, 9):
        entries = [f"1851-03-{day:02d}\nThe wind was {day} at hour {hour}." for hour in range(30)]
        (tmp_path / "raw" / f"{day}.log").write_text("\n***\n".join([*entries, "1851-04-01"]))
    (tmp_path / "raw" / "notes.txt").write_text("not a logbook")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield tmp_path / "raw"
    sys.modules.pop("logbook", None)


def test_a_reader_and_a_filter_from_outside_the_package(
    logbooks: Path, tmp_path: Path, run_cli: Any
) -> None:
    source = {"kind": "logbook.LogbookReader", "path": str(logbooks), "separator": "***"}
    since = {"class_path": "logbook.Since", "init_args": {"date": "1851-03-02"}}
    out = tmp_path / "data"
    done = run_cli(
        "prepare",
        f"--out={out}",
        f"--sources={json.dumps({'ship': source})}",
        f"--filters={json.dumps([since])}",
        "--tokenizer.vocab_size=280",
        "--splits.validation=0",
        "--splits.test=0",
        "--max_bad_fraction=0.1",
        "--workers=1",
        env={"PYTHONPATH": str(tmp_path / "code")},
    )
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(out)
    ship = manifest.sources["ship"]
    assert (ship.kind, ship.files, ship.path) == ("logbook.LogbookReader", 8, str(logbooks))
    assert [(step.name, step.removed) for step in ship.funnel[:2]] == [
        ("read", {"no_entry": 8}),
        ("Since", {"too_early": 30}),
    ]
    assert ship.splits["train"].documents == 210
    hits = list(find_text(out, manifest, Tokenizer.load(out), "The wind was 3 at hour 4."))
    assert [hit.record.origin for hit in hits] == ["3.log:5"]
    assert manifest.versions["module logbook"].startswith("sha256:")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "is of kind logbook.LogbookReader and needs `separator`"),
        ({"separator": "***", "fields": {"text": "a"}}, "fields={'text': 'a'} has no meaning"),
    ],
)
def test_its_options_are_checked(logbooks: Path, fields: dict[str, Any], message: str) -> None:
    source = SourceConfig(kind="logbook.LogbookReader", path=str(logbooks), **fields)
    with pytest.raises(UserError, match=r"sources\.ship") as raised:
        source.validate("ship")
    assert message in str(raised.value)


def test_the_message_for_a_folder_without_files_names_its_suffixes(
    logbooks: Path, tmp_path: Path
) -> None:
    source = SourceConfig(
        kind="logbook.LogbookReader", path=str(tmp_path / "code"), separator="***"
    )
    with pytest.raises(UserError, match=r"ends in \.log or \.book"):
        find_inputs("ship", source)


def test_its_packages_and_its_module_count_as_versions(logbooks: Path) -> None:
    source = SourceConfig(kind="logbook.LogbookReader", path=str(logbooks), separator="***")
    config = PrepareConfig(out="x", sources={"ship": source})
    assert {"zstandard", "module logbook"} <= versions(config).keys()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("jsonlines", "sources.mine.kind='jsonlines' is unknown. Did you mean 'jsonl'?"),
        ("nowhere.Reader", "sources.mine.kind='nowhere.Reader': there is no module 'nowhere'"),
        ("logbook.LogbokReader", "has no 'LogbokReader'. Did you mean 'LogbookReader'?"),
        ("json.JSONDecoder", "sources.mine.kind: json.JSONDecoder is no reader; derive it from"),
        ("json.loads", "sources.mine.kind: json.loads is no reader; derive it from"),
    ],
)
def test_what_is_no_reader(logbooks: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        SourceConfig(kind=kind, path="x").validate("mine")
    assert message in str(raised.value)


@pytest.mark.parametrize("kind", READERS)
def test_each_of_our_readers_declares_fields_of_a_source(kind: str) -> None:
    reader = reader_class(kind)
    names = inspect.signature(SourceConfig).parameters
    assert set(reader.required) <= set(reader.options) <= set(names)
    assert reader.suffixes or "path" not in reader.options
    assert reader.records is not FileReader.records
