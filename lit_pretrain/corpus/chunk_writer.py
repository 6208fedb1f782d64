"""Chunk writer: write encoded documents to LitData chunks, with the same bytes every time.

The format is LitData's for tokens (`TokensLoader`): a chunk is a uint32 count of rows, that many
uint32 byte offsets and one more for the end, then the tokens. It is written here rather than by
`litdata.streaming.writer`, whose import costs every worker process torch and whose file names
depend on the environment; a test holds the bytes against LitData's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from lit_pretrain.corpus.chunk_reader import DOCUMENTS_FILENAME
from lit_pretrain.corpus.manifest import INDEX_FILENAME, Chunk, SourceSplit
from lit_pretrain.files import sync, write_file

_DATA_FORMAT = {"uint16": "no_header_numpy:5", "int32": "no_header_numpy:2"}
"""LitData's names of token arrays without headers."""


class ShardWriter:
    """Write one part of one split of one source.

    The files are chunk-<part>-0.bin, chunk-<part>-1.bin, ... and documents-<part>.jsonl. A chunk
    holds at most `chunk_tokens` tokens and whole documents, each a row of its header; only a
    document longer than a chunk is cut, into rows that each fill one, the last excepted. The writer
    holds one chunk in memory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        part: int,
        dtype: npt.DTypeLike,
        chunk_tokens: int,
        vocab_size: int,
    ) -> None:
        """Create the directory.

        Args:
            directory: Directory of this part alone.
            part: Number of the part within its source: file names of all parts differ.
            dtype: Type of the stored tokens.
            chunk_tokens: Most tokens in a chunk.
            vocab_size: Every id must lie below it.
        """
        directory.mkdir(parents=True)
        self._directory = directory
        self._part = part
        self._dtype = np.dtype(dtype)
        self._chunk_tokens = chunk_tokens
        self._vocab_size = vocab_size
        self._log: IO[str] = (directory / _documents_part(part)).open("w", encoding="utf-8")
        self._rows: list[npt.NDArray[np.generic]] = []  # of the chunk that is being filled
        self._records: list[Mapping[str, object]] = []  # of the same chunk
        self._tokens = 0
        self._chunks: list[Chunk] = []
        self._documents = 0
        self._bytes = 0
        self.cut = 0
        """Documents that were longer than a chunk."""

    def add(
        self,
        ids: npt.NDArray[np.generic],
        *,
        origin: str,
        utf8_bytes: int,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """Store a document.

        Args:
            ids: [tokens], of the stored dtype.
            origin: For documents.jsonl.
            utf8_bytes: Length of its text, likewise.
            fields: What else is known of the document, likewise.
        """
        assert ids.dtype == self._dtype, ids.dtype  # a reader would take another dtype for garbage
        assert len(ids) > 0
        assert 0 <= int(ids.min()) <= int(ids.max()) < self._vocab_size
        pieces = [
            ids[begin : begin + self._chunk_tokens]
            for begin in range(0, len(ids), self._chunk_tokens)
        ]
        for number, piece in enumerate(pieces):
            if self._tokens + len(piece) > self._chunk_tokens:
                self._finish()
            record: dict[str, object] = {
                "origin": origin,
                "tokens": len(piece),
                "bytes": utf8_bytes if number == 0 else 0,
            }
            if len(pieces) > 1:
                record["piece"] = number
            self._records.append({**record, **({"fields": dict(fields)} if fields else {})})
            self._rows.append(piece)
            self._tokens += len(piece)
        self._documents += 1
        self._bytes += utf8_bytes
        self.cut += len(pieces) > 1

    def close(self) -> SourceSplit:
        """Write what is left, make all files durable, and return their record."""
        if self._rows:
            self._finish()
        self._log.close()
        sync(self._directory / _documents_part(self._part))
        tokens = sum(chunk.tokens for chunk in self._chunks)
        return SourceSplit(
            documents=self._documents, tokens=tokens, bytes=self._bytes, chunks=tuple(self._chunks)
        )

    def abort(self) -> None:
        """Close the open file; the caller removes the directory."""
        # On a full disk the buffered rest cannot be written, and nobody wants it.
        with contextlib.suppress(OSError):
            self._log.close()

    def _finish(self) -> None:
        """Write the chunk that is full, and note its rows."""
        lengths = np.array([len(row) for row in self._rows], dtype=np.int64) * self._dtype.itemsize
        # LitData's header: the number of rows, where each of them begins, and where the last one
        # ends.
        header = 4 * (len(lengths) + 2)
        offsets = header + np.concatenate([[0], np.cumsum(lengths)])
        data = b"".join(
            [
                len(lengths).to_bytes(4, "little"),
                offsets.astype("<u4").tobytes(),
                *(row.tobytes() for row in self._rows),
            ]
        )
        filename = f"chunk-{self._part}-{len(self._chunks)}.bin"
        write_file(self._directory / filename, data)
        self._chunks.append(
            Chunk(
                filename=filename,
                tokens=self._tokens,
                documents=len(lengths),
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
        for number, record in enumerate(self._records):
            self._log.write(
                json.dumps(
                    {"chunk": filename, "row_in_chunk": number, **record}, ensure_ascii=False
                )
                + "\n"
            )
        self._rows, self._records, self._tokens = [], [], 0


def assemble_chunks(
    directory: Path,
    parts: Iterable[tuple[int, Path, SourceSplit]],
    *,
    dtype: str,
    chunk_tokens: int,
) -> SourceSplit:
    """Make one split of a source from its parts.

    The chunks are moved, documents.jsonl is joined, and LitData's index.json is written.

    Args:
        directory: Directory of the split; created if any part holds a document.
        parts: (number, directory of the part, its record), in order.
        dtype: Type of the stored tokens.
        chunk_tokens: Most tokens in a chunk.

    Returns:
        The record of the whole.
    """
    documents = tokens = size = 0
    chunks: list[Chunk] = []
    with _lazy(directory / DOCUMENTS_FILENAME) as log:
        for number, part, split in parts:
            if not split.chunks:
                continue
            with (part / _documents_part(number)).open("rb") as rows:
                shutil.copyfileobj(rows, log())
            for chunk in split.chunks:
                if (part / chunk.filename).exists():  # else a run that was killed here has moved it
                    os.rename(part / chunk.filename, directory / chunk.filename)
            chunks += split.chunks
            documents, tokens, size = (
                documents + split.documents,
                tokens + split.tokens,
                size + split.bytes,
            )
    if chunks:
        write_file(directory / INDEX_FILENAME, _index(chunks, dtype, chunk_tokens))
    return SourceSplit(documents=documents, tokens=tokens, bytes=size, chunks=tuple(chunks))


class _lazy:
    """Create a file, with its directory, when it is first used, and sync it at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _lazy:
        return self

    def __call__(self) -> IO[bytes]:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        return self._file

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _index(chunks: list[Chunk], dtype: str, chunk_tokens: int) -> str:
    """Return index.json as LitData reads it."""
    config = {
        "chunk_bytes": None,
        "chunk_size": chunk_tokens,
        "compression": None,
        "compression_batch_size": None,
        "compression_level": None,
        "data_format": [_DATA_FORMAT[dtype]],
        "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
        "encryption": None,
        "ipc_compression": None,
        "item_loader": "TokensLoader",
        "types": "json",
    }
    index = {
        "chunks": [
            {
                "chunk_bytes": c.bytes,
                "chunk_size": c.documents,
                "dim": c.tokens,
                "filename": c.filename,
            }
            for c in chunks
        ],
        "config": config,
        # Readers of remote data drop their cache when this changes: the content, and not the time,
        # is what should tell them.
        "updated_at": hashlib.sha256(
            "".join(chunk.sha256 for chunk in chunks).encode()
        ).hexdigest()[:16],
    }
    return json.dumps(index, sort_keys=True) + "\n"


def _documents_part(part: int) -> str:
    """Name the file that lists the rows of one part."""
    return f"documents-{part}.jsonl"


def directories_below(path: Path) -> Iterator[Path]:
    """Yield all directories below a directory, the deepest first, then itself."""
    for child in sorted(path.iterdir()):
        if child.is_dir():
            yield from directories_below(child)
    yield path
