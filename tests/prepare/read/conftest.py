"""What the readers' tests share: a source read to its end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.read_counts import ReadCounts
from lit_pretrain.prepare.read.records import BadRecord, ReadPolicy
from lit_pretrain.prepare.read.source_reader import SourceReader


@dataclass
class Outcome:
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


Read = Callable[..., Outcome]


@pytest.fixture
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Reads a source; checks what holds for every source."""

    def all_of(
        kind: Any, path: Path | str | list[str], *, policy: ReadPolicy | None = None, **fields: Any
    ) -> Outcome:
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
        return Outcome(documents, bad, counts, reader.examples)

    return all_of
