"""Trace: find the rows, chunks and documents of an optimizer step without reading a token."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_pretrain.corpus.documents import DocumentRecord, full_origin, read_document_records
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.text.order import Order
from lit_pretrain.files import is_remote

_ROWS_NAMED, _DOCUMENTS_NAMED = 8, 4
"""Most rows, and documents of a row, that a message about a step names."""


@dataclass(frozen=True)
class TracedRow:
    """A row of a step with the origin of its tokens."""

    sample: int
    source: str
    epoch: int
    block: int
    chunk: str
    first_token: int
    """Offset of the row's first token in the chunk."""
    documents: tuple[DocumentRecord, ...]
    """The documents that the row reads from, in order."""


class Tracer:
    """Looks up rows of a local dataset.

    Args:
        path: Directory of the dataset.
        manifest: Manifest of the dataset.
        order: Data order of the run.
        seq_len: Inputs per row.
    """

    def __init__(self, path: Path, manifest: Manifest, order: Order, *, seq_len: int) -> None:
        self.path = path
        self.manifest = manifest
        self.order = order
        self.seq_len = seq_len
        self._documents: dict[str, dict[str, list[DocumentRecord]]] = {}

    def rows(self, samples: Iterable[int]) -> Iterator[TracedRow]:
        """Yield the rows of some global sample numbers."""
        for n in samples:
            sample = self.order(n)
            source = self.order.sources[sample.source]
            ends = np.cumsum(source.chunk_blocks)
            c = int(np.searchsorted(ends, sample.block, side="right"))
            chunk = self.manifest.sources[source.name].splits["train"].chunks[c].filename
            first = (sample.block - (int(ends[c - 1]) if c else 0)) * self.seq_len
            documents = self._overlapping(source.name, chunk, first, first + self.seq_len + 1)
            yield TracedRow(n, source.name, sample.epoch, sample.block, chunk, first, documents)

    def _overlapping(
        self, source: str, chunk: str, first: int, last: int
    ) -> tuple[DocumentRecord, ...]:
        found, begin = [], 0
        for document in self._chunk_documents(source).get(chunk, []):
            end = begin + document.tokens
            if end > first and begin < last:
                found.append(document)
            begin = end
        return tuple(found)

    def _chunk_documents(self, source: str) -> dict[str, list[DocumentRecord]]:
        if source not in self._documents:
            by_chunk: dict[str, list[DocumentRecord]] = {}
            for record in read_document_records(self.path, "train", source):
                by_chunk.setdefault(record.chunk, []).append(record)
            self._documents[source] = by_chunk
        return self._documents[source]


def named_rows(
    samples: Sequence[int], *, path: str, manifest: Manifest, order: Order, seq_len: int
) -> str:
    """Name the rows of a few samples: source, epoch, row and, of local data, documents.

    Args:
        samples: Global sample numbers.
        path: Directory or URL of the dataset.
        manifest: Manifest of the dataset.
        order: Data order of the run.
        seq_len: Inputs per row.
    """
    shown, names = samples[:_ROWS_NAMED], list(manifest.sources)
    if is_remote(path):  # the list of documents would have to be downloaded
        found = [f"{names[s.source]} epoch {s.epoch} row {s.block}" for s in map(order, shown)]
    else:
        found = []
        for row in Tracer(Path(path), manifest, order, seq_len=seq_len).rows(shown):
            source = manifest.sources[row.source]
            origins = [full_origin(source, document.origin) for document in row.documents]
            rest = (
                f" and {len(origins) - _DOCUMENTS_NAMED} more"
                if len(origins) > _DOCUMENTS_NAMED
                else ""
            )
            found.append(
                f"{row.source} epoch {row.epoch} row {row.block}:"
                f" {', '.join(origins[:_DOCUMENTS_NAMED])}{rest}"
            )
    more = [
        f"and {len(samples) - _ROWS_NAMED} more rows (`lit_pretrain inspect order --step` names"
        " them all)"
    ]
    return "\n  ".join(["", *found, *(more if len(samples) > _ROWS_NAMED else [])])
