"""What the tests of preparation share: the command line within this process, the files of a
directory, and a source that is read to its end.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.files import file_sha256
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.read_source import ReadCounts, SourceReader
from lit_pretrain.prepare.read.reader import BadRecord, ReadPolicy


class Result(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def _prepare_here(*arguments: str | Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["prepare", *map(str, arguments)])
        except SystemExit as stop:  # a parser's
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def prepare_here() -> Callable[..., Result]:
    """`lit_pretrain prepare` where a process of its own is not the point: its imports are paid
    once. A mistake of ours raises.
    """
    return _prepare_here


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """The files below a directory, and the hash of each."""

    def files(directory: Path) -> dict[str, str]:
        return {
            path.relative_to(directory).as_posix(): file_sha256(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return files


@dataclass
class SourceOutcome:
    """All that a source gave."""

    documents: list[Document]
    bad: list[BadRecord]
    counts: ReadCounts
    examples: dict[str, BadRecord]

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def origins(self) -> list[str]:
        return [document.origin for document in self.documents]

    @property
    def faults(self) -> list[tuple[str, str]]:
        return [(record.origin, record.reason) for record in self.bad]


Read = Callable[..., SourceOutcome]


@pytest.fixture
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Reads a source; checks what holds for every source."""

    def all_of(
        kind: Any, path: Path | str | list[str], *, policy: ReadPolicy | None = None, **fields: Any
    ) -> SourceOutcome:
        source = SourceConfig(
            kind=kind, path=path if isinstance(path, list) else str(path), **fields
        )
        source.validate("mine")
        inputs = find_inputs("mine", source)
        scratch = tmp_path_factory.mktemp("scratch")
        reader = SourceReader(source, inputs.files, policy or ReadPolicy(), scratch)
        found = list(reader)
        documents = [item for item in found if isinstance(item, Document)]
        bad = [item for item in found if isinstance(item, BadRecord)]
        counts = reader.counts
        assert counts.documents == len(documents)
        assert counts.bytes == sum(len(document.text.encode()) for document in documents)
        assert counts.bad.total() == len(bad)
        assert counts.records == len(documents) + len(bad) + counts.empty.total()
        assert counts.input_bytes == inputs.bytes
        assert counts.unread_bytes == sum(record.unread_bytes for record in bad)
        assert all(len(record.excerpt) <= 300 and len(record.detail) <= 300 for record in bad)
        assert not list(scratch.iterdir())
        return SourceOutcome(documents, bad, counts, reader.examples)

    return all_of
