"""Rows: fixed-length rows of tokens with document numbers, by number, from LitData shards.

A chunk is one stream of tokens. Row i of a chunk holds tokens [i*T, i*T + T + 1), with T inputs per
row: neighbours share one token, so that every token but the first of a chunk is a target exactly
once (LitData's own loader would lose one target in T + 1). The beginnings of documents are read
from the chunk's header, never guessed from an end-of-text id.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from litdata import StreamingDataset
from litdata.streaming.item_loader import Interval, TokensLoader
from litdata.streaming.resolver import Dir

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.corpus.chunk_cache import ChunkCache
from lit_pretrain.corpus.chunk_reader import map_chunk
from lit_pretrain.corpus.manifest import (
    INDEX_FILENAME,
    Chunk,
    held_out_rows,
    rows_in,
    verify_chunk,
)
from lit_pretrain.errors import UserError

ATTEMPTS = 10
"""How often to fetch a chunk that other processes drop from a shared cache before it is opened."""


class TokenRow(NamedTuple):
    """Hold T + 1 stored tokens and the document each belongs to."""

    tokens: npt.NDArray[np.int64]
    """Token ids, shape (T + 1,); a shorter row is filled up with IGNORE_INDEX."""
    doc: npt.NDArray[np.int32]
    """Number of the token's document within the row, shape (T + 1,), starting at 0."""


class _Chunk(NamedTuple):
    """Hold an open chunk."""

    tokens: npt.NDArray[Any]
    """All stored tokens, mapped from the file."""
    begins: npt.NDArray[np.int64]
    """Token offsets at which its documents begin."""


class RowLoader(TokensLoader):  # type: ignore[misc]  # LitData is not typed
    """Load overlapping rows with document numbers, and check each chunk when it is opened.

    Args:
        seq_len: Inputs per row, T.
        vocab_size: Ids at or above it are refused.
        chunks: The manifest's entries; every chunk is checked against its sha256 when it is first
            read.
        folder: Where the chunks lie in the dataset: `<split>/<source>`.
        cache: Fetches the chunks of a remote dataset; None where they are local.
        held_out: Read what does not fill a row, too, where there is no more (`held_out_rows`).
        keep_open: Chunks that stay mapped; as many as are shuffled together.
    """

    def __init__(
        self,
        seq_len: int,
        *,
        vocab_size: int,
        chunks: Iterable[Chunk],
        folder: str = "",
        cache: ChunkCache | None = None,
        held_out: bool = False,
        keep_open: int = 1,
    ) -> None:
        super().__init__(block_size=seq_len)
        self._seq_len = seq_len
        self._vocab_size = vocab_size
        self._expected = {chunk.filename: chunk for chunk in chunks}
        self._folder = folder
        self._cache = cache
        self._held_out = held_out
        self._keep_open = keep_open
        self._open: dict[str, _Chunk] = {}
        self._checked: set[str] = set()

    def __getstate__(self) -> dict[str, object]:
        # A memory map belongs to one process; pickled it would be a copy of the chunk.
        return {**super().__getstate__(), "_open": {}}

    def generate_intervals(self) -> list[Interval]:
        """Return the first and last row of each chunk."""
        listed = {chunk["filename"]: chunk["dim"] for chunk in self._chunks}
        if list(listed.items()) != [
            (chunk.filename, chunk.tokens) for chunk in self._expected.values()
        ]:
            raise UserError(
                f"{INDEX_FILENAME} of {self._folder} lists other chunks than the manifest; copy it"
                " again from where the dataset came from, or run `lit_pretrain prepare` again"
            )
        tokens = [chunk.tokens for chunk in self._expected.values()]
        rows = (
            held_out_rows(tokens, self._seq_len)
            if self._held_out
            else [rows_in(n, self._seq_len) for n in tokens]
        )
        intervals, begin = [], 0
        for count in rows:
            end = begin + count
            intervals.append(Interval(begin, begin, end, end))
            begin = end
        return intervals

    def load_item_from_chunk(
        self, index: int, chunk_index: int, chunk_filepath: str, begin: int, filesize_bytes: int
    ) -> TokenRow:
        """Return row `index` of the source from the given chunk, whose first row is `begin`."""
        name = os.path.basename(chunk_filepath)
        chunk = self._open.get(name) or self._map(name, chunk_filepath)
        first = (int(index) - int(begin)) * self._seq_len
        # One token more than the inputs: the label of the last one.
        last = first + self._seq_len + 1
        tokens = np.array(chunk.tokens[first:last], dtype=np.int64)
        if tokens.max() >= self._vocab_size or tokens.min() < 0:
            worst = int(tokens.max() if tokens.max() >= self._vocab_size else tokens.min())
            raise UserError(
                f"chunk {chunk_filepath} holds token id {worst} but the tokenizer has only ids 0 to"
                f" {self._vocab_size - 1}; the data and its tokenizer do not belong together: run"
                " `lit_pretrain prepare` again"
            )
        # A document that begins with the row needs no mark, because the row's numbers begin at 0.
        inside = chunk.begins[
            np.searchsorted(chunk.begins, first, side="right") : np.searchsorted(
                chunk.begins, last, side="left"
            )
        ]
        doc = np.zeros(self._seq_len + 1, dtype=np.int32)
        doc[inside - first] = 1
        if missing := self._seq_len + 1 - len(tokens):
            # What fills up the row is a document of its own, which no token of the text sees.
            doc[len(tokens)] = 1
            tokens = np.pad(tokens, (0, missing), constant_values=IGNORE_INDEX)
        return TokenRow(tokens, np.cumsum(doc, dtype=np.int32))

    def _map(self, name: str, path: str) -> _Chunk:
        """Open a chunk, and let go of the one opened longest ago."""
        while len(self._open) >= self._keep_open:
            del self._open[next(iter(self._open))]
        for _ in range(ATTEMPTS):
            if self._cache is not None:
                path = str(self._cache.fetch(self._folder, self._expected[name], in_use=self._open))
            # Each chunk is hashed once by a process, however often it is opened again.
            elif name not in self._checked or not os.path.isfile(path):
                verify_chunk(path, self._expected[name])
                self._checked.add(name)
            try:
                tokens, begins = map_chunk(Path(path), np.dtype(self._dtype))
            except FileNotFoundError:  # another process made room in the cache just now
                continue
            chunk = self._open[name] = _Chunk(tokens, begins[:-1])
            return chunk
        raise UserError(
            f"chunk {path} was dropped from the cache {ATTEMPTS} times before it could be opened:"
            " several processes share a data.max_cache_size that is too small for them; raise it"
        )


# LitData compares class names with the one recorded in index.json.
RowLoader.__name__ = "TokensLoader"


def open_rows(
    directory: str | Path,
    *,
    seq_len: int,
    vocab_size: int,
    chunks: Iterable[Chunk],
    folder: str = "",
    cache: ChunkCache | None = None,
    held_out: bool = False,
    keep_open: int = 1,
) -> StreamingDataset:
    """Open the shards of one source as a `StreamingDataset` whose item i is row i.

    Args:
        directory: Local folder that holds index.json, and the chunks or, of a remote dataset, their
            copies.
        seq_len: Inputs per row.
        vocab_size: Number of token ids.
        chunks: The manifest's entries for these shards.
        folder: Where the shards lie in the dataset: `<split>/<source>`.
        cache: Fetches the chunks of a remote dataset; None where they are local.
        held_out: Read what does not fill a row, too, where there is no more (`held_out_rows`).
        keep_open: Chunks that stay mapped; as many as are shuffled together.
    """
    index = Path(directory) / INDEX_FILENAME
    try:
        json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{index} cannot be read ({getattr(error, 'strerror', None) or error}); copy it again"
            " from where the dataset came from, or run `lit_pretrain prepare` again"
        ) from None
    loader = RowLoader(
        seq_len,
        vocab_size=vocab_size,
        chunks=chunks,
        folder=folder,
        cache=cache,
        held_out=held_out,
        keep_open=keep_open,
    )
    return StreamingDataset(
        Dir(path=str(directory)), item_loader=loader, shuffle=False, drop_last=False
    )
