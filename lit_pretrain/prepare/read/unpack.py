"""Unpacking: the bytes of a gzip, zstd or bzip2 file up to where it is damaged.

The libraries' own readers either take a cut file for a whole one (zstandard) or drop what they had unpacked before the damage (pyarrow).
"""

from __future__ import annotations

import bz2
import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lit_pretrain.prepare.read.records import Damaged

_BLOCK = 1 << 20


def _gzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()  # as `zstd --long=31` writes


# Bytes unpacked at a time. They bound the memory where a file unpacks to very much more than its size (gzip 1,000 times, zstd 30,000, bzip2
# a million), and what is lost before the damage.
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
            yield io.BufferedReader(_Unpacked(file, *packed), _BLOCK)


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
                raise Damaged("the file ends too early" if self._size else "the file is empty", self._size - self.position)
            return False
        if self._member is None:
            if self._members and self._start is _gzip and not packed.strip(b"\0"):  # padding, which gzip allows at the end
                self._padded = True
                return True
            if self._padded:  # a hole: what stood there is lost
                raise Damaged("zeros between packed data", self._size - self.position)
            self._member = self._start()
            self._members += 1
        try:
            self._ready = memoryview(self._member.decompress(packed))
        except Exception as error:  # zlib.error, ZstdError, OSError, EOFError
            raise Damaged(f"the packed data is damaged: {error}", self._size - self.position) from None
        if self._member.eof:
            self._packed = self._member.unused_data
            self._member = None
        self.position += len(packed) - len(self._packed)
        return True
