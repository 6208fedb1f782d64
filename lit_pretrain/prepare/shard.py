"""Shards: encoded documents to LitData chunks, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.manifest import Chunk, SourceSplit

DOCUMENTS_FILENAME = "documents.jsonl"
INDEX_FILENAME = "index.json"


class ShardWriter:
    """Writes one split of one source: chunk-0-0.bin, ..., index.json and documents.jsonl.

    A chunk holds at most `chunk_tokens` tokens and whole documents, each a row of its header; only a document longer than a chunk is
    cut, into rows that each fill one, the last excepted. Every finished chunk is read back and compared with what went in.

    `documents.jsonl` serves inspection: a line per row with the document's number, its chunk and row there, its origin, its tokens and
    its UTF-8 bytes (of a document that was cut: all of them on its first piece, and the number of the piece).
    """

    def __init__(self, directory: Path, *, dtype: npt.DTypeLike, chunk_tokens: int, vocab_size: int) -> None:
        """Creates the directory.

        Args:
            directory: Must not exist.
            dtype: Of the stored tokens.
            chunk_tokens: Most tokens in a chunk.
            vocab_size: Every id must lie below it.
        """
        from litdata.streaming.item_loader import TokensLoader
        from litdata.streaming.writer import BinaryWriter

        directory.mkdir(parents=True)
        self._directory = directory
        self._dtype = np.dtype(dtype)
        self._chunk_tokens = chunk_tokens
        self._vocab_size = vocab_size
        self._writer = BinaryWriter(str(directory), chunk_size=chunk_tokens, item_loader=TokensLoader())
        # Chunk names carry the rank of the process, taken from the environment of a cluster job: here one process writes all.
        self._writer._rank = 0
        self._log: IO[str] = (directory / DOCUMENTS_FILENAME).open("w", encoding="utf-8")
        self._rows: list[dict[str, Any]] = []  # of the chunk that is being filled
        self._payload = hashlib.sha256()  # of the same
        self._payload_tokens = 0
        self._items = 0
        self._chunks: list[Chunk] = []
        self._documents = 0
        self._bytes = 0
        self.cut = 0
        """Documents that were longer than a chunk."""

    def add(self, ids: npt.NDArray[np.generic], *, origin: str, utf8_bytes: int) -> None:
        """Stores a document.

        Args:
            ids: [tokens], of the stored dtype.
            origin: For documents.jsonl.
            utf8_bytes: Length of its text, likewise.
        """
        assert ids.dtype == self._dtype, ids.dtype  # litdata would store another dtype as garbage
        assert len(ids) > 0
        assert 0 <= int(ids.min()) <= int(ids.max()) < self._vocab_size
        pieces = [ids[begin : begin + self._chunk_tokens] for begin in range(0, len(ids), self._chunk_tokens)]
        for number, piece in enumerate(pieces):
            row = {"doc": self._documents, "origin": origin, "tokens": len(piece), "bytes": utf8_bytes if number == 0 else 0}
            if len(pieces) > 1:
                row["piece"] = number
            if self._payload_tokens + len(piece) > self._chunk_tokens:
                # The writer closes the full chunk when it is given the item that does not fit.
                expected = self._payload.digest()
                path = self._writer.add_item(self._items, piece)
                assert path is not None
                self._finish(Path(path), expected)
            else:
                path = self._writer.add_item(self._items, piece)
                assert path is None
            self._rows.append(row)
            self._payload.update(piece.tobytes())
            self._payload_tokens += len(piece)
            self._items += 1
        self._documents += 1
        self._bytes += utf8_bytes
        self.cut += len(pieces) > 1

    def close(self) -> SourceSplit:
        """Writes what is left and the index, makes all files durable, and returns their record. There must have been a document."""
        assert self._items
        expected = self._payload.digest()
        paths = self._writer.done()
        assert len(paths) == 1, paths
        self._finish(Path(paths[0]), expected)
        self._write_index()
        self._log.flush()
        os.fsync(self._log.fileno())
        self._log.close()
        sync(self._directory)
        tokens = sum(chunk.tokens for chunk in self._chunks)
        return SourceSplit(documents=self._documents, tokens=tokens, bytes=self._bytes, chunks=tuple(self._chunks))

    def abort(self) -> None:
        """Closes the open file; the caller removes the directory."""
        self._log.close()

    def _finish(self, path: Path, expected: bytes) -> None:
        """Reads a finished chunk back, compares it with what went in, makes it durable, and notes its rows."""
        tokens = sum(row["tokens"] for row in self._rows)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            data = file.read()
        offsets = chunk_offsets(data)
        lengths = (np.diff(offsets) // self._dtype.itemsize).tolist()
        if lengths != [row["tokens"] for row in self._rows] or hashlib.sha256(memoryview(data)[int(offsets[0]) :]).digest() != expected:
            raise RuntimeError(
                f"{path} does not hold what was written: litdata's chunk format is not the one this version of lit_pretrain knows"
            )
        self._chunks.append(
            Chunk(filename=path.name, tokens=tokens, documents=len(self._rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        )
        for number, row in enumerate(self._rows):
            line = {"doc": row["doc"], "chunk": path.name, "row_in_chunk": number, **row}
            self._log.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._rows = []
        self._payload = hashlib.sha256()
        self._payload_tokens = 0

    def _write_index(self) -> None:
        """index.json from the writer's own part: litdata's merge would put the time into it."""
        part = self._directory / f"0.{INDEX_FILENAME}"
        index = json.loads(part.read_text(encoding="utf-8"))
        # Readers of remote data drop their cache when this changes: the content, and not the time, is what should tell them.
        index["updated_at"] = hashlib.sha256("".join(chunk.sha256 for chunk in self._chunks).encode()).hexdigest()[:16]
        write_durably(self._directory / INDEX_FILENAME, json.dumps(index, sort_keys=True) + "\n")
        part.unlink()


def chunk_offsets(data: bytes) -> npt.NDArray[np.int64]:
    """Byte offsets of the rows of a chunk file, [rows + 1]: uint32 count of rows, then that many uint32 offsets + 1.

    Raises:
        ValueError: The header does not describe the file.
    """
    count = int.from_bytes(data[:4], "little")
    header = 4 * (count + 2)
    offsets = np.frombuffer(data[4:header], dtype="<u4").astype(np.int64)
    if len(offsets) != count + 1 or offsets[0] != header or offsets[-1] != len(data) or np.any(np.diff(offsets) < 0):
        raise ValueError(f"not a chunk: its header counts {count} rows, its size is {len(data)}")
    return offsets


def write_durably(path: Path, text: str) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until the disk has the content of a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def directories_below(path: Path) -> Iterator[Path]:
    """A directory and all below it, the deepest first."""
    for child in sorted(path.iterdir()):
        if child.is_dir():
            yield from directories_below(child)
    yield path
