"""Search: where a text lies in the shards, down to the row of the file that it came from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_pretrain.data.documents import FILENAME, DocumentRecord, read_records
from lit_pretrain.data.manifest import SPLITS, Manifest
from lit_pretrain.data.stored import open_chunk
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.errors import UserError

_AROUND_BYTES = 60


@dataclass(frozen=True, slots=True)
class Hit:
    """One place where the text stands."""

    split: str
    source: str
    record: DocumentRecord
    """The document, or the piece of one, that holds it."""
    token: int
    """Offset in the row of the token in which it begins."""
    before: str
    """What stands before it in the document, at most 60 bytes."""
    after: str
    """What follows it."""


def find(path: Path, manifest: Manifest, tokenizer: Tokenizer, text: str) -> Iterator[Hit]:
    """All places of a text in a dataset, in the order of the data: splits, sources, chunks.

    What is compared is the bytes that the tokens stand for, so that it does not matter how the text was cut into tokens. Text that a
    document continues in another chunk is not found across the cut. Holds one chunk, about 30 bytes a token.

    Args:
        path: The dataset's directory.
        manifest: Its manifest.
        tokenizer: Its tokenizer; must spell bytes.
        text: What to look for; a tokenizer that normalises is applied to it first.

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
            records = read_records(path, split, name) if records is None else records
            mine = list(itertools.islice(records, chunk.documents))
            if len(mine) != chunk.documents or any(record.chunk != chunk.filename for record in mine):
                raise UserError(
                    f"{path / split / name / FILENAME} does not fit {chunk.filename}: it should name {chunk.documents:,} rows of it in a "
                    "block of lines. Run `lit_pretrain prepare` again."
                )
            tokens, rows = open_chunk(path / split / name / chunk.filename, manifest.dtype, chunk.bytes)
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
                    after = data[place + len(needle) : min(end, place + len(needle) + _AROUND_BYTES)]
                    yield Hit(split, name, mine[row], token - int(rows[row]), _readable(before), _readable(after))
                place = data.find(needle, place + 1)


def _readable(data: bytes) -> str:
    """Text of bytes that may begin and end with half a character."""
    return data.decode(errors="ignore")
