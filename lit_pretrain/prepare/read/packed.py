"""Packed files: the bytes of a gzip, zstd or bzip2 file up to where it is damaged.

The libraries' own readers either take a cut file for a whole one (zstandard) or drop what they had
unpacked before the damage (pyarrow).
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

from lit_pretrain.prepare.read.records import DamagedFile

_BUFFER = 1 << 20
"""Unpacked bytes that are buffered."""


def _gzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd() -> Any:
    import zstandard

    # `zstd --long=31` writes windows of up to 2 GiB.
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


# Suffix -> what makes a decompressor, and packed bytes unpacked at a time. These bound the memory
# where a file unpacks to very much more than its size (gzip 1,000 times, zstd 30,000, bzip2 a
# million), and what is lost before the damage.
_DECOMPRESSORS: dict[str, tuple[Callable[[], Any], int]] = {
    ".gz": (_gzip, 1 << 14),
    ".zst": (_zstd, 1 << 11),
    ".bz2": (bz2.BZ2Decompressor, 1 << 8),
}


def packed_or_not(*suffixes: str) -> tuple[str, ...]:
    """List each suffix as it is and with those of packed files: .txt, .txt.gz, ..."""
    return tuple(f"{suffix}{packed}" for suffix in suffixes for packed in ("", *_DECOMPRESSORS))


@contextlib.contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, and unpack it if its suffix says that it is packed.

    Raises:
        DamagedFile: While reading, where the packed data ends too early or is invalid.
    """
    with path.open("rb") as file:
        decompressor = _DECOMPRESSORS.get(path.suffix)
        if decompressor is None:
            yield file
        else:
            yield io.BufferedReader(_UnpackedFile(file, *decompressor), _BUFFER)


def unread_bytes(stream: io.BufferedReader, path: Path) -> int:
    """Count the bytes of the file, as stored, that the stream has not taken from it yet."""
    position = stream.raw.position if isinstance(stream.raw, _UnpackedFile) else stream.tell()
    return max(0, path.stat().st_size - position)


class _UnpackedFile(io.RawIOBase):
    """Unpack a file; concatenated members are one file, as for the command-line tools."""

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
        """Unpack a piece; return whether there was one."""
        packed = self._packed or self._file.read(self._piece)
        self._packed = b""
        if not packed:
            if self._member is not None or not self._members:
                raise DamagedFile(
                    "the file ends too early" if self._size else "the file is empty",
                    self._size - self.position,
                )
            return False
        if self._member is None:
            # gzip allows zeros as padding at the end.
            if self._members and self._start is _gzip and not packed.strip(b"\0"):
                self._padded = True
                return True
            if self._padded:  # The zeros were a hole: what stood there is lost.
                raise DamagedFile("zeros between packed data", self._size - self.position)
            self._member = self._start()
            self._members += 1
        try:
            self._ready = memoryview(self._member.decompress(packed))
        except Exception as error:  # zlib.error, ZstdError, OSError, EOFError
            raise DamagedFile(
                f"the packed data is damaged: {error}", self._size - self.position
            ) from None
        if self._member.eof:
            self._packed = self._member.unused_data
            self._member = None
        self.position += len(packed) - len(self._packed)
        return True
