"""Rows: fixed-length rows of tokens, with document numbers, read by number from the LitData shards of one source.

A chunk is one stream of tokens. Row i of a chunk holds tokens [i*T, i*T + T + 1): neighbours share one token, so that
every token but the first of a chunk is a target exactly once (LitData's own loader would lose one target in T + 1).
Where documents begin is read from the chunk's header, never guessed from an end-of-text id.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from litdata import StreamingDataset
from litdata.streaming.item_loader import Interval, TokensLoader
from litdata.streaming.resolver import Dir

from lit_pretrain.data.manifest import Chunk, verify_chunk
from lit_pretrain.data.trace import rows_in
from lit_pretrain.errors import UserError


class Row(NamedTuple):
    """T + 1 stored tokens and the document each belongs to."""

    tokens: npt.NDArray[np.int64]
    """Token ids, shape (T + 1,)."""
    doc: npt.NDArray[np.int32]
    """Number of the token's document within the row, shape (T + 1,), starting at 0."""


class RowLoader(TokensLoader):
    """LitData item loader that returns overlapping rows with document numbers, and checks each chunk when it opens it.

    Args:
        seq_len: Inputs per row, T.
        vocab_size: Ids at or above it are refused.
        chunks: The manifest's entries; every chunk is checked against its sha256 when it is first read.
    """

    def __init__(self, seq_len: int, *, vocab_size: int, chunks: Iterable[Chunk]) -> None:
        super().__init__(block_size=seq_len)
        self._seq_len = seq_len
        self._vocab_size = vocab_size
        self._expected = {chunk.filename: chunk for chunk in chunks}
        self._begins: dict[int, npt.NDArray[np.int64]] = {}
        self._checked: set[int] = set()

    def generate_intervals(self) -> list[Interval]:
        intervals, begin = [], 0
        for chunk in self._chunks:
            end = begin + rows_in(chunk["dim"], self._seq_len)
            intervals.append(Interval(begin, begin, end, end))
            begin = end
        return intervals

    def load_item_from_chunk(
        self, index: int, chunk_index: int, chunk_filepath: str, begin: int, filesize_bytes: int
    ) -> Row:  # type: ignore[override]
        chunk_index = int(chunk_index)
        if chunk_filepath not in self._chunk_filepaths or not Path(chunk_filepath).is_file():
            self._chunk_filepaths.pop(chunk_filepath, None)
            self._wait_until_chunk_ready(chunk_index, chunk_filepath, filesize_bytes)
            self._chunk_filepaths[chunk_filepath] = True
        if chunk_index not in self._checked:
            self._open(chunk_index, Path(chunk_filepath))
        self._load_chunk(chunk_index, chunk_filepath)
        first = (index - begin) * self._seq_len
        last = first + self._seq_len + 1
        dtype = np.dtype(self._dtype)
        stored = np.frombuffer(
            self._buffers[chunk_index], dtype=dtype, count=self._seq_len + 1, offset=first * dtype.itemsize
        )
        tokens = stored.astype(np.int64)
        if tokens.max() >= self._vocab_size or tokens.min() < 0:
            worst = int(tokens.max() if tokens.max() >= self._vocab_size else tokens.min())
            raise UserError(
                f"chunk {chunk_filepath} holds token id {worst} but the tokenizer has only ids 0 to {self._vocab_size - 1}; "
                "the data and its tokenizer do not belong together: run `lit_pretrain prepare` again"
            )
        begins = self._begins[chunk_index]
        inside = begins[np.searchsorted(begins, first, side="right") : np.searchsorted(begins, last, side="left")]
        doc = np.zeros(self._seq_len + 1, dtype=np.int32)
        doc[inside - first] = 1
        return Row(tokens, np.cumsum(doc, dtype=np.int32))

    def _open(self, chunk_index: int, path: Path) -> None:
        verify_chunk(path, self._expected[path.name])
        self._begins[chunk_index] = document_begins(path, np.dtype(self._dtype).itemsize)
        self._checked.add(chunk_index)

    def delete(self, chunk_index: int, chunk_filepath: str) -> None:
        self._checked.discard(int(chunk_index))  # a fresh download is checked afresh
        super().delete(chunk_index, chunk_filepath)


# LitData compares class names with the one recorded in index.json.
RowLoader.__name__ = "TokensLoader"


def document_begins(path: Path, itemsize: int) -> npt.NDArray[np.int64]:
    """Token offsets at which the documents of a chunk begin, from the header: uint32 n, then n + 1 byte offsets."""
    with path.open("rb") as file:
        count = int(np.fromfile(file, dtype=np.uint32, count=1)[0])
        offsets = np.fromfile(file, dtype=np.uint32, count=count + 1).astype(np.int64)
    return (offsets[:-1] - offsets[0]) // itemsize


def open_rows(
    location: str,
    *,
    seq_len: int,
    vocab_size: int,
    chunks: Iterable[Chunk],
    cache_dir: str | None = None,
    max_cache_size: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> StreamingDataset:
    """Open the shards of one source as a `StreamingDataset` whose item i is row i.

    Args:
        location: A directory or an `s3://` URL that holds index.json and the chunks.
        seq_len: Inputs per row.
        vocab_size: Number of token ids.
        chunks: The manifest's entries for these shards.
        cache_dir: Where remote chunks are kept; LitData's own place if None. Local data is read where it lies.
        max_cache_size: Limit of the cache, e.g. "20GB"; chunks that were read are deleted beyond it.
        storage_options: Passed to the object store's client, e.g. {"endpoint_url": "http://..."}.
    """
    remote = "://" in location
    return StreamingDataset(
        Dir(path=cache_dir, url=location) if remote else Dir(path=location),
        item_loader=RowLoader(seq_len, vocab_size=vocab_size, chunks=chunks),
        max_cache_size=max_cache_size,
        storage_options=dict(storage_options or {}),
        shuffle=False,
        drop_last=False,
    )
