"""Text and JSON Lines: plain files, and files of which each line is a JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import ClassVar

from lit_pretrain.prepare.read.file_reader import FileReader
from lit_pretrain.prepare.read.packed import open_unpacked, packed_or_not
from lit_pretrain.prepare.read.records import (
    BadRecord,
    RawText,
    UnusableRecord,
    text_and_fields,
)

BLOCK_BYTES = 1 << 20
"""Bytes read at a time."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""U+FEFF as UTF-8: some editors begin files with it."""


class TextReader(FileReader):
    """Read plain text: a file is one document, or several with a separator between them.

    Holds at most one document. Of one that is too large it keeps no more than shows that.
    """

    suffixes: ClassVar = packed_or_not(".txt", ".md")
    options: ClassVar = (*FileReader.options, "separator")

    def records(self, path: Path, name: str) -> Iterator[RawText]:
        """See `FileReader`."""
        limit, separator = self.policy.max_document_bytes, self.source.separator
        with open_unpacked(path) as file:
            if separator is None:
                yield RawText(name, file.read(limit + 4).removeprefix(_BYTE_ORDER_MARK))
                return
            for number, piece in enumerate(split_stream(file, separator.encode(), limit), start=1):
                yield RawText(
                    f"{name}:{number}",
                    piece.removeprefix(_BYTE_ORDER_MARK) if number == 1 else piece,
                )


def split_stream(file: BufferedIOBase, separator: bytes, limit: int) -> Iterator[bytes]:
    """Yield what stands between separators.

    Of a piece longer than `limit` only the beginning is kept: enough to know that it is too large.
    """
    rest, beginning = b"", None
    while block := file.read1(BLOCK_BYTES):  # `read` would lose what came before a damage.
        *whole, rest = (rest + block).split(separator)
        for piece in whole:
            yield piece if beginning is None else beginning
            beginning = None
        # The end of `rest` may be half a separator, which is not part of the piece.
        if len(rest) > limit + 4 + len(separator):
            beginning = rest[: limit + 4] if beginning is None else beginning
            rest = rest[len(rest) - len(separator) + 1 :]
    yield rest if beginning is None else beginning


class JsonlReader(FileReader):
    """Read JSON Lines: each line is an object, one or more of whose fields hold the text.

    Holds one line. A line longer than three times the largest document and 1 MiB is too large,
    whatever it holds: the escapes of most alphabets are three times as long as their UTF-8, and
    there are other fields.
    """

    suffixes: ClassVar = packed_or_not(".jsonl")
    options: ClassVar = (*FileReader.options, "fields")

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord]:
        """See `FileReader`."""
        longest = 3 * self.policy.max_document_bytes + BLOCK_BYTES
        with open_unpacked(path) as file:
            number = 0
            while line := file.readline(longest):
                number += 1
                origin = f"{name}:{number}"
                if len(line) == longest and not line.endswith(b"\n"):
                    beginning, length = line[:1000], len(line)
                    del line
                    while rest := file.readline(BLOCK_BYTES):
                        length += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    detail = f"the line has {length:,} bytes"
                    yield BadRecord.of(origin, "too_large", detail, beginning)
                elif line.strip():
                    yield self._parse(line, origin)

    def _parse(self, line: bytes, origin: str) -> RawText | BadRecord:
        """Parse one line."""
        replaced = False
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if self.policy.errors == "skip":
                detail = (
                    f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not"
                    f" UTF-8 ({error.reason})"
                )
                return BadRecord.of(origin, "undecodable", detail, line)
            text, replaced = line.decode("utf-8-sig", errors="replace"), True
        try:
            record = json.loads(text)
        # ValueError is also raised for a number of more digits than Python takes.
        except (ValueError, RecursionError) as error:
            return BadRecord.of(origin, "not_json", f"not JSON: {error}", text)
        if not isinstance(record, dict):
            detail = f"a JSON {type(record).__name__}, not an object"
            return BadRecord.of(origin, "not_json", detail, text)
        try:
            content, fields = text_and_fields(record, self.source)
        except UnusableRecord as error:
            return BadRecord.of(origin, error.reason, str(error), text)
        return RawText(origin, content, fields, replaced)
