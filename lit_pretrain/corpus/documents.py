"""Documents: the record of every stored document, and the way from it back to its source file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_pretrain.corpus.chunk_reader import open_chunk
from lit_pretrain.corpus.manifest import SPLITS, Manifest, Source
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer

DOCUMENTS_FILENAME = "documents.jsonl"
"""In `<split>/<source>/`: one line a row of the chunks, in their order."""


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """Describe one row of a chunk: a document, or a piece of one longer than a chunk."""

    chunk: str
    """File name of the chunk."""
    row: int
    """Row in its header, from 0."""
    origin: str
    """Where the text came from, relative to the source: file, or file:row."""
    tokens: int
    """Stored tokens, separators included."""
    bytes: int
    """UTF-8 bytes of the document's text; 0 for every piece but the first."""
    piece: int | None
    """Number of the piece, from 0; None for a whole document."""


def read_document_records(path: Path, split: str, source: str) -> Iterator[DocumentRecord]:
    """Yield the records of one split of one source, in the order of the data.

    A split without chunks has no such file; the caller passes over it.

    Raises:
        UserError: The file is missing, or a line of it is damaged.
    """
    file = path / split / source / DOCUMENTS_FILENAME
    if not file.is_file():
        raise UserError(
            f"{file} is missing: tokens can be counted but their documents cannot be named. Copy it"
            " again from where the dataset came from, or run `lit_pretrain prepare` again."
        )
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _record(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{file}, line {number} is damaged ({error!r}): {line[:80]!r}. Run"
                    " `lit_pretrain prepare` again."
                ) from None


def _record(raw: dict[str, Any]) -> DocumentRecord:
    return DocumentRecord(
        raw["chunk"],
        raw["row_in_chunk"],
        raw["origin"],
        raw["tokens"],
        raw["bytes"],
        raw.get("piece"),
    )


def full_origin(source: Source, origin: str) -> str:
    """Prefix a document's origin with the path of its source: the file to open, and its row."""
    if not source.path:  # the embedded corpus, or paths that have nothing in common
        return origin
    return f"{source.path.rstrip('/')}/{origin}"


# ------------------------------------------------------------------ search


_AROUND_BYTES = 60
"""Context shown on either side of a hit."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """Locate one occurrence of the text."""

    split: str
    source: str
    record: DocumentRecord
    """The document, or the piece of one, that holds it."""
    token: int
    """Offset within the row of the token in which the hit begins."""
    before: str
    """What stands before it in the document, at most 60 bytes."""
    after: str
    """What follows it."""


def find_text(
    path: Path, manifest: Manifest, tokenizer: Tokenizer, text: str
) -> Iterator[SearchHit]:
    """Find all occurrences of a text in a dataset, in the order of the data.

    What is compared is the bytes that the tokens stand for, so that it does not matter how the text
    was cut into tokens. Text that a document continues in another chunk is not found across the
    cut. Holds one chunk, about 30 bytes a token.

    Args:
        path: The dataset's directory.
        manifest: Its manifest.
        tokenizer: Its tokenizer; must spell bytes.
        text: The text to find; a tokenizer that normalises is applied to it first.

    Raises:
        UserError: A chunk or the list of its documents is missing or damaged.
    """
    pieces = tokenizer.pieces()
    table = [pieces.get(index, b"") for index in range(manifest.tokenizer.vocab_size)]
    sizes = np.array([len(piece) for piece in table], dtype=np.int64)
    needle = (tokenizer.decode(tokenizer.encode(text)) if tokenizer.normalizes else text).encode()
    for split, (name, source) in itertools.product(SPLITS, manifest.sources.items()):
        records: Iterator[DocumentRecord] | None = None
        for chunk in source.splits[split].chunks:
            records = read_document_records(path, split, name) if records is None else records
            mine = list(itertools.islice(records, chunk.documents))
            if len(mine) != chunk.documents or any(
                record.chunk != chunk.filename for record in mine
            ):
                raise UserError(
                    f"{path / split / name / DOCUMENTS_FILENAME} does not fit {chunk.filename}: it"
                    f" should name {chunk.documents:,} rows of it in a block of lines. Run"
                    " `lit_pretrain prepare` again."
                )
            tokens, rows = open_chunk(
                path / split / name / chunk.filename, manifest.dtype, chunk.bytes
            )
            ids = np.asarray(tokens)
            data = b"".join(map(table.__getitem__, ids.tolist()))
            if needle not in data:
                continue
            starts = np.concatenate(([0], np.cumsum(sizes[ids])))  # byte at which each token begins
            edges = starts[rows]  # and each row, then the end
            place = data.find(needle)
            while place >= 0:
                row = int(np.searchsorted(edges, place, side="right")) - 1
                begin, end = int(edges[row]), int(edges[row + 1])
                if place + len(needle) <= end:  # else half of it belongs to the next document
                    token = int(np.searchsorted(starts, place, side="right")) - 1
                    before = data[max(begin, place - _AROUND_BYTES) : place]
                    after = data[
                        place + len(needle) : min(end, place + len(needle) + _AROUND_BYTES)
                    ]
                    yield SearchHit(
                        split,
                        name,
                        mine[row],
                        token - int(rows[row]),
                        _readable(before),
                        _readable(after),
                    )
                place = data.find(needle, place + 1)


def _readable(data: bytes) -> str:
    """Decode bytes that may begin and end with half a character."""
    return data.decode(errors="ignore")
