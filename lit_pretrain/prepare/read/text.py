"""Text: a file is one document, or one per separator."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from lit_pretrain.prepare.read.records import Raw, ReadPolicy
from lit_pretrain.prepare.read.unpack import unpacked
from lit_pretrain.prepare.source import SourceConfig

_BLOCK = 1 << 20
_MARK = b"\xef\xbb\xbf"
"""U+FEFF as UTF-8: some editors begin files with it."""


def records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw]:
    """Holds at most one document, of which it reads no more than shows that it is too large."""
    limit = policy.max_document_bytes
    with unpacked(path) as file:
        if source.separator is None:
            yield Raw(name, file.read(limit + 4).removeprefix(_MARK))
            return
        for number, piece in enumerate(pieces(file, source.separator.encode(), limit), start=1):
            yield Raw(f"{name}:{number}", piece.removeprefix(_MARK) if number == 1 else piece)


def pieces(file: BufferedIOBase, separator: bytes, limit: int) -> Iterator[bytes]:
    """What stands between separators. Of a piece longer than `limit` only the beginning is kept, enough to know that it is too large."""
    rest, beginning = b"", None
    while block := file.read1(_BLOCK):  # not read: it would lose what came before a damage
        *whole, rest = (rest + block).split(separator)
        for piece in whole:
            yield piece if beginning is None else beginning
            beginning = None
        if len(rest) > limit + 4 + len(separator):  # its end may be half a separator, which is not part of the piece
            beginning = rest[: limit + 4] if beginning is None else beginning
            rest = rest[len(rest) - len(separator) + 1 :]
    yield rest if beginning is None else beginning
