"""JSON Lines: a line is a JSON object, one of whose fields holds the text."""

from __future__ import annotations

import bz2
import contextlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.records import (
    BadRecord,
    Damaged,
    Raw,
    ReadPolicy,
    Unusable,
    text_and_fields,
)

# Unpacking: the bytes of a gzip, zstd or bzip2 file up to where it is damaged.
#
# The libraries' own readers either take a cut file for a whole one (zstandard) or drop what they
# had unpacked before the damage (pyarrow).


_BLOCK_unpack = 1 << 20


def _gzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(
        max_window_size=2**31
    ).decompressobj()  # as `zstd --long=31` writes


# Bytes unpacked at a time. They bound the memory where a file unpacks to very much more than its
# size (gzip 1,000 times, zstd 30,000, bzip2 a million), and what is lost before the damage.
_FORMATS: dict[str, tuple[Callable[[], Any], int]] = {
    ".gz": (_gzip, 1 << 14),
    ".zst": (_zstd, 1 << 11),
    ".bz2": (bz2.BZ2Decompressor, 1 << 8),
}


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked where its suffix says so.

    Raises:
        Damaged: While reading, where the packed data ends too early or is not what it should be.
    """
    with path.open("rb") as file:
        packed = _FORMATS.get(path.suffix)
        if packed is None:
            yield file
        else:
            yield io.BufferedReader(_Unpacked(file, *packed), _BLOCK_unpack)


def unread(stream: io.BufferedReader, path: Path) -> int:
    """Bytes of the file, as stored, behind what the stream has taken from it."""
    position = stream.raw.position if isinstance(stream.raw, _Unpacked) else stream.tell()
    return max(0, path.stat().st_size - position)


class _Unpacked(io.RawIOBase):
    """Concatenated members are one file, as for the command-line tools."""

    def __init__(self, file: BinaryIO, start: Callable[[], Any], piece: int) -> None:
        self._file = file
        self._start = start
        self._piece = piece
        self._size = os.fstat(file.fileno()).st_size
        self._member: Any = None  # None between members
        self._members = 0
        self._padded = False
        self._packed = b""
        self._ready = memoryview(b"")
        self.position = 0
        """Bytes of the file that were unpacked."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _fill(self) -> bool:
        """Unpacks a piece; whether there was one."""
        packed = self._packed or self._file.read(self._piece)
        self._packed = b""
        if not packed:
            if self._member is not None or not self._members:
                raise Damaged(
                    "the file ends too early" if self._size else "the file is empty",
                    self._size - self.position,
                )
            return False
        if self._member is None:
            if (
                self._members and self._start is _gzip and not packed.strip(b"\0")
            ):  # padding, which gzip allows at the end
                self._padded = True
                return True
            if self._padded:  # a hole: what stood there is lost
                raise Damaged("zeros between packed data", self._size - self.position)
            self._member = self._start()
            self._members += 1
        try:
            self._ready = memoryview(self._member.decompress(packed))
        except Exception as error:  # zlib.error, ZstdError, OSError, EOFError
            raise Damaged(
                f"the packed data is damaged: {error}", self._size - self.position
            ) from None
        if self._member.eof:
            self._packed = self._member.unused_data
            self._member = None
        self.position += len(packed) - len(self._packed)
        return True


_BLOCK_jsonl = 1 << 20


def jsonl_records(
    path: Path, name: str, source: SourceConfig, policy: ReadPolicy
) -> Iterator[Raw | BadRecord]:
    """Holds one line. One longer than three times the largest document and 1 MiB is too large,
    whatever it holds: the escapes of most alphabets are three times as long as their UTF-8, and
    there are other fields.
    """
    longest = 3 * policy.max_document_bytes + _BLOCK_jsonl
    with unpacked(path) as file:
        number = 0
        while line := file.readline(longest):
            number += 1
            origin = f"{name}:{number}"
            if len(line) == longest and not line.endswith(b"\n"):
                beginning, length = line[:1000], len(line)
                del line
                while rest := file.readline(_BLOCK_jsonl):
                    length += len(rest)
                    if rest.endswith(b"\n"):
                        break
                yield BadRecord.of(origin, "too_large", f"the line has {length:,} bytes", beginning)
            elif line.strip():
                yield _record(line, origin, source, policy)


def _record(line: bytes, origin: str, source: SourceConfig, policy: ReadPolicy) -> Raw | BadRecord:
    """One line."""
    replaced = False
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if policy.errors == "skip":
            what = (
                f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not UTF-8"
                f" ({error.reason})"
            )
            return BadRecord.of(origin, "undecodable", what, line)
        text, replaced = line.decode("utf-8-sig", errors="replace"), True
    try:
        record = json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also a number of more digits than Python takes
        return BadRecord.of(origin, "not_json", f"not JSON: {error}", text)
    if not isinstance(record, dict):
        return BadRecord.of(
            origin, "not_json", f"a JSON {type(record).__name__}, not an object", text
        )
    try:
        content, fields = text_and_fields(record, source)
    except Unusable as error:
        return BadRecord.of(origin, error.reason, str(error), text)
    return Raw(origin, content, fields, replaced)


# Text: a file is one document, or one per separator.


_BLOCK_text = 1 << 20
_MARK = b"\xef\xbb\xbf"
"""U+FEFF as UTF-8: some editors begin files with it."""


def text_records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw]:
    """Holds at most one document, of which it reads no more than shows that it is too large."""
    limit = policy.max_document_bytes
    with unpacked(path) as file:
        if source.separator is None:
            yield Raw(name, file.read(limit + 4).removeprefix(_MARK))
            return
        for number, piece in enumerate(pieces(file, source.separator.encode(), limit), start=1):
            yield Raw(f"{name}:{number}", piece.removeprefix(_MARK) if number == 1 else piece)


def pieces(file: BufferedIOBase, separator: bytes, limit: int) -> Iterator[bytes]:
    """What stands between separators. Of a piece longer than `limit` only the beginning is
    kept, enough to know that it is too large.
    """
    rest, beginning = b"", None
    while block := file.read1(_BLOCK_text):  # not read: it would lose what came before a damage
        *whole, rest = (rest + block).split(separator)
        for piece in whole:
            yield piece if beginning is None else beginning
            beginning = None
        if len(rest) > limit + 4 + len(
            separator
        ):  # its end may be half a separator, which is not part of the piece
            beginning = rest[: limit + 4] if beginning is None else beginning
            rest = rest[len(rest) - len(separator) + 1 :]
    yield rest if beginning is None else beginning
