"""Record files: the rows of a JSON Lines, JSON, Parquet or text file, packed or not."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeAlias

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import parse_json

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
RECORD_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")
"""Suffixes of files that can be read, in either case; all but .parquet also packed (.gz, .zst,
.bz2).
"""

FileRecord: TypeAlias = dict[str, Any]
"""One record as it stands in a file: its fields are the file's own, and nobody has read them yet.
"""
MAX_ROW_BYTES = 100_000_000
"""Largest row, and largest list of rows that is held in memory as a whole: no row that a model is
trained on comes near it.
"""
_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 256


class RecordMistake(UserError):
    """One record of a file cannot be used; those around it can.

    Args:
        where: File and number of the record.
        reason: One word, under which such records are counted.
        detail: What is wrong with it.
    """

    def __init__(self, where: str, reason: str, detail: str) -> None:
        super().__init__(f"{where} {detail}")
        self.reason, self.detail = reason, detail


def read_records(
    path: str | os.PathLike[str], separator: str = "\n", what: str = "the evaluation set"
) -> list[FileRecord]:
    """Return all records of a file, in its order.

    Takes the arguments of `scan_records`.

    Raises:
        UserError: As `scan_records`, and at the first record that cannot be used.
    """
    records = []
    for record in scan_records(path, separator, what):
        if isinstance(record, RecordMistake):
            raise record
        records.append(record)
    return records


def scan_records(
    path: str | os.PathLike[str], separator: str = "\n", what: str = "the evaluation set"
) -> Iterator[FileRecord | RecordMistake]:
    """Yield the records of a file in its order, and in place of one that cannot be used, why.

    Text files are held in memory, and lists of objects up to `MAX_ROW_BYTES`.

    Args:
        path: jsonl: an object a line. json: a list of objects. parquet: a row each. txt: a record
            `{"text": ...}` per piece that is not blank.
        separator: Txt only: what stands between pieces; an empty line (two line feeds) makes each
            paragraph one.
        what: What the file is, for messages.

    Raises:
        UserError: The file is missing, damaged or of another format.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if packed := suffix in _COMPRESSIONS:
        suffix = path.with_suffix("").suffix.lower()
    if suffix not in RECORD_SUFFIXES or (suffix == ".parquet" and packed):
        raise UserError(
            f"{what} {path} cannot be read: its name must end in {', '.join(RECORD_SUFFIXES)}"
            " (packed or not)"
        )
    read = {".parquet": _parquet, ".jsonl": _lines, ".json": _list, ".txt": _pieces}[suffix]
    try:
        yield from read(path, separator)
    except FileNotFoundError:
        raise UserError(
            f"{what} {path} does not exist (relative paths start at {Path.cwd()})"
        ) from None
    except UserError:
        raise
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"{what} {path} cannot be read: {error}. Fetch it again.") from None


def _parquet(path: Path, separator: str) -> Iterator[FileRecord | RecordMistake]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                heavy = batch.nbytes > MAX_ROW_BYTES
                for row in (batch.slice(place, 1) for place in range(batch.num_rows)):
                    number += 1
                    where = f"{path}, record {number}"
                    if heavy and row.nbytes > MAX_ROW_BYTES:
                        yield _too_large(where, row.nbytes)
                        continue
                    try:
                        yield from row.to_pylist()
                    except UnicodeDecodeError as error:
                        yield _undecodable(where, error)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def _lines(path: Path, separator: str) -> Iterator[FileRecord | RecordMistake]:
    with _unpacked(path) as stream:
        number = 0
        # JSON strings may hold U+2028 and the like unescaped; only a line feed ends a line.
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_ROW_BYTES:
                length, end = len(line), line[-1:]
                while end != b"\n" and (rest := stream.readline(1 << 20)):
                    length, end = length + len(rest), rest[-1:]
                yield _too_large(where, length)
            elif line.strip():
                yield _parsed(line, where)


def _parsed(line: bytes, where: str) -> FileRecord | RecordMistake:
    try:
        value = parse_json(line.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        return _undecodable(where, error)
    except UserError as error:
        return RecordMistake(where, "not_json", str(error).removeprefix(where).lstrip(": "))
    return _object(value, where)


def _list(path: Path, separator: str) -> Iterator[FileRecord | RecordMistake]:
    with _unpacked(path) as stream:
        content = stream.read(MAX_ROW_BYTES + 1)
        if len(content) > MAX_ROW_BYTES:
            yield from _long_list(path, content, stream)
            return
    try:
        text, spoilt = content.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        # Each bad byte becomes half of a surrogate pair, which tells the record that it is in.
        text, spoilt = content.decode("utf-8-sig", "surrogateescape"), True
    whole = parse_json(text, str(path))
    if not isinstance(whole, list):
        raise _no_list(path, type(whole).__name__)
    for number, record in enumerate(whole, start=1):
        where = f"{path}, record {number}"
        if spoilt and (mistake := _spoilt(record, where)) is not None:
            yield mistake
        else:
            yield _object(record, where)


_OUTSIDE = re.compile(rb'["{}\[\],]')


def _next_mark(block: bytes, place: int, within_text: bool) -> int:
    """Find what opens, closes or parts values, or within a text ends or escapes; -1 if nothing."""
    if not within_text:
        found = _OUTSIDE.search(block, place)
        return -1 if found is None else found.start()
    end = block.find(b'"', place)  # much faster than a pattern in a long text
    escape = block.find(b"\\", place, len(block) if end < 0 else end)
    return end if escape < 0 else escape


def _long_list(
    path: Path, content: bytes, stream: IO[bytes]
) -> Iterator[FileRecord | RecordMistake]:
    """Yield the records of a list of objects that is too long to be held as a whole.

    Args:
        path: The file.
        content: What was read of it.
        stream: Gives the rest.
    """
    for number, (record, length) in enumerate(_elements(path, content, stream), start=1):
        where = f"{path}, record {number}"
        yield _too_large(where, length) if length > MAX_ROW_BYTES else _parsed(record, where)


def _elements(path: Path, content: bytes, stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield the elements of a JSON list and their lengths; of too long ones only the beginning."""
    kept, length = bytearray(), 0
    start = content.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start != b"[":
        raise _no_list(path, {b"{": "object", b'"': "text"}.get(start, "value"))
    depth, count, ended, within_text, escaped = 0, 0, False, False, False
    blocks = chain(
        (content[at : at + _BLOCK_BYTES] for at in range(0, len(content), _BLOCK_BYTES)),
        iter(lambda: stream.read(_BLOCK_BYTES), b""),
    )
    for block in blocks:
        first = 0  # of the element, in this block
        place = int(escaped)
        escaped = False
        while (at := _next_mark(block, place, within_text)) >= 0:
            place, mark = at + 1, block[at : at + 1]
            if ended:
                break
            if mark == b"\\":
                place += 1
                escaped = place > len(block)
            elif mark == b'"':
                within_text = not within_text
            elif mark in b"[{":
                depth += 1
                first = place if depth == 1 else first
            elif mark in b"]}":
                depth -= 1
                ended = depth == 0
            if ended or (mark == b"," and depth == 1 and not within_text):
                kept += block[first : place - 1][: MAX_ROW_BYTES + 1 - len(kept)]
                length += place - 1 - first
                if count or not ended or kept.strip():  # not the nothing in an empty list
                    yield bytes(kept), length
                kept.clear()
                count, length, first = count + 1, 0, place
        if depth:
            kept += block[first:][: MAX_ROW_BYTES + 1 - len(kept)]
            length += len(block) - first
        elif ended and block[first:].strip():
            raise UserError(f"{path} is not JSON: it goes on behind the end of its list")
    if not ended:
        raise UserError(f"{path} is not JSON: it ends before its list does")


def _no_list(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds a JSON {what}; it must be a list of objects. Convert it to that or to jsonl."
    )


def _too_large(where: str, length: int) -> RecordMistake:
    detail = f"has {length:,} bytes; {MAX_ROW_BYTES:,} are allowed in a row"
    return RecordMistake(where, "too_large", detail)


def _spoilt(record: Any, where: str) -> RecordMistake | None:
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        return _undecodable(where, error)
    except UnicodeEncodeError:  # half of a pair that is spelt as one: others judge it
        return None
    return None


def _pieces(path: Path, separator: str) -> Iterator[FileRecord | RecordMistake]:
    with _unpacked(path) as stream:
        content = stream.read().removeprefix(codecs.BOM_UTF8)
    for number, piece in enumerate(content.split(separator.encode()), start=1):
        try:
            text = piece.decode().strip()
        except UnicodeDecodeError as error:
            yield _undecodable(f"{path}, piece {number}", error)
        else:
            if text:
                yield {"text": text}


def _undecodable(where: str, error: UnicodeDecodeError) -> RecordMistake:
    byte = error.object[error.start]
    return RecordMistake(
        where, "undecodable", f"is not UTF-8: it holds the byte 0x{byte:02x} ({error.reason})"
    )


def _unpacked(path: Path) -> IO[bytes]:
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    import pyarrow

    # zstandard's own reader takes a truncated file for a complete one; pyarrow's does not.
    stream = pyarrow.input_stream(str(path), compression=compression)
    return io.BufferedReader(stream)


def _object(value: Any, where: str) -> FileRecord | RecordMistake:
    if isinstance(value, dict):
        return value
    return RecordMistake(
        where, "not_json", f"holds a JSON {type(value).__name__}; each record must be an object"
    )
