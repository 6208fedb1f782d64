"""Documents: the record of every stored document, and the way from it back to its source file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.data.manifest import Source
from lit_pretrain.errors import UserError

FILENAME = "documents.jsonl"
"""In `<split>/<source>/`: one line a row of the chunks, in their order."""


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """One row of a chunk: a document, or a piece of one that is longer than a chunk."""

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


def read_records(path: Path, split: str, source: str) -> Iterator[DocumentRecord]:
    """The records of one split of one source, in the order of the data. A split without chunks has none, and no file: do not ask.

    Raises:
        UserError: The file is missing, or a line of it is damaged.
    """
    file = path / split / source / FILENAME
    if not file.is_file():
        raise UserError(
            f"{file} is missing: tokens can be counted but their documents cannot be named. Copy it again from where the dataset came "
            "from, or run `lit_pretrain prepare` again."
        )
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _record(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}, line {number} is damaged ({error!r}): {line[:80]!r}. Run `lit_pretrain prepare` again.") from None


def _record(raw: dict[str, Any]) -> DocumentRecord:
    return DocumentRecord(raw["chunk"], raw["row_in_chunk"], raw["origin"], raw["tokens"], raw["bytes"], raw.get("piece"))


def full_origin(source: Source, origin: str) -> str:
    """A document's origin with the path at which its source lay: what to open, and the row in it."""
    if not source.path:  # the embedded corpus, or paths that have nothing in common
        return origin
    return f"{source.path.rstrip('/')}/{origin}"
