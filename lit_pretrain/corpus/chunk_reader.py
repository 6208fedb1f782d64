"""Chunk reader: open chunks with numpy alone, count their ids, and look up their documents.

Each stored document has a record, which leads from its row in a chunk back to its source file.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lit_pretrain.corpus.manifest import SPLITS, Manifest, Source
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer

_BLOCK_TOKENS = 1 << 22
_SAMPLED_CHUNKS = 16


def token_counts(path: Path, manifest: Manifest, split: str = "train") -> npt.NDArray[np.int64]:
    """Count how often a split holds each id, separators too, over all sources, [vocab_size].

    Holds 4 Mi tokens at a time.

    Raises:
        UserError: A chunk is missing or damaged, or holds an id that the tokenizer does not have.
    """
    size = manifest.tokenizer.vocab_size
    counts = np.zeros(size, dtype=np.int64)
    for name, source in manifest.sources.items():
        for chunk in source.splits[split].chunks:
            file = path / split / name / chunk.filename
            tokens, _ = open_chunk(file, manifest.dtype, chunk.bytes)
            for begin in range(0, len(tokens), _BLOCK_TOKENS):
                block = np.asarray(tokens[begin : begin + _BLOCK_TOKENS])
                if int(block.max()) >= size or int(block.min()) < 0:
                    raise UserError(
                        f"chunk {file} holds token ids from {block.min()} to {block.max()} but the"
                        f" tokenizer has only ids 0 to {size - 1}; the data and its tokenizer do"
                        " not belong together: run `lit_pretrain prepare` again"
                    )
                counts += np.bincount(block, minlength=size)
    return counts


def sample_documents(
    path: Path,
    manifest: Manifest,
    source: str,
    tokenizer: Tokenizer,
    *,
    size: int,
    split: str = "train",
) -> Iterator[str]:
    """Yield the text of documents of one source, about `size` UTF-8 bytes in all.

    The documents are drawn at random with a fixed seed.
    They come from at most 16 chunks, spread evenly over the source, an equal share of each; a
    document longer than what is still wanted is cut. A tokenizer that normalises gives the
    normalised text back.

    Args:
        path: The dataset's directory.
        manifest: Its manifest.
        source: Name of the source.
        tokenizer: The tokenizer of the dataset.
        size: UTF-8 bytes.
        split: Name of the split.

    Raises:
        UserError: A chunk is missing or damaged.
    """
    chunks = manifest.sources[source].splits[split].chunks
    chosen = [
        chunks[n * len(chunks) // min(_SAMPLED_CHUNKS, len(chunks))]
        for n in range(min(_SAMPLED_CHUNKS, len(chunks)))
    ]
    left = size
    for number, chunk in enumerate(chosen):
        # What a small chunk could not give, the next ones do.
        share = left // (len(chosen) - number)
        tokens, begins = open_chunk(
            path / split / source / chunk.filename, manifest.dtype, chunk.bytes
        )
        for row in np.random.default_rng(number).permutation(len(begins) - 1).tolist():
            if share <= 0:
                break
            # A token is at least a byte: of a long document, no more than is wanted is read.
            ids = np.asarray(tokens[begins[row] : min(begins[row + 1], begins[row] + share + 1)])
            # Where a document was cut between two chunks, half a character may be left of it.
            data = tokenizer.decode(ids.tolist()).strip("\ufffd").encode()[:share]
            share -= len(data)
            left -= len(data)
            if text := data.decode(errors="ignore"):
                yield text


def open_chunk(file: Path, dtype: str, size: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Map the tokens of a chunk, after a check that it has the size that the manifest says.

    Args:
        file: The chunk.
        dtype: Type of the stored tokens.
        size: Its bytes, from the manifest.

    Returns:
        The tokens, and the offsets at which its rows begin, then its end, [rows + 1].

    Raises:
        UserError: The chunk is missing or damaged.
    """
    mend = "Copy it again from where the dataset came from, or run `lit_pretrain prepare` again."
    try:
        found = file.stat().st_size
        if found != size:
            raise ValueError(f"{found:,} bytes on disk, {size:,} in the manifest")
        return map_chunk(file, np.dtype(dtype))
    except OSError as error:
        raise UserError(f"chunk {file} cannot be read: {error.strerror or error}. {mend}") from None
    except ValueError as error:
        raise UserError(f"chunk {file} is damaged: {error}. {mend}") from None


def map_chunk(file: Path, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Map the tokens of a chunk, and read at which of them its rows begin, then its end.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The header does not describe the file.
    """
    with file.open("rb") as opened:
        offsets = read_chunk_header(opened)
    tokens = np.memmap(file, dtype=dtype, mode="r", offset=int(offsets[0]))
    return tokens, (offsets - offsets[0]) // dtype.itemsize


def read_chunk_header(file: BinaryIO) -> npt.NDArray[np.int64]:
    """Read the byte offsets at which the rows of a chunk begin, then its end, [rows + 1].

    LitData's header is the count of rows and these offsets, all uint32; tokens follow.

    Raises:
        ValueError: The header does not describe the file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    count = int.from_bytes(file.read(4), "little")
    header = 4 * (count + 2)
    # A damaged count may be in the billions: read no more than the file holds.
    data = file.read(header - 4) if header <= size else b""
    offsets = np.frombuffer(data, dtype="<u4").astype(np.int64)
    if (
        len(offsets) != count + 1
        or offsets[0] != header
        or offsets[-1] != size
        or np.any(np.diff(offsets) < 0)
    ):
        raise ValueError(f"its header counts {count:,} rows, which {size:,} bytes do not fit")
    return offsets


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


def _record(raw: Mapping[str, Any]) -> DocumentRecord:
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
            # One pass through the list, which names the rows of all chunks in their order.
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
