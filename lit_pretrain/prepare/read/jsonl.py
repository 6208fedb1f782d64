"""JSON Lines: a line is a JSON object, one of whose fields holds the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.prepare.read.mapping import Unusable, text_and_fields
from lit_pretrain.prepare.read.records import BadRecord, Raw, ReadPolicy
from lit_pretrain.prepare.read.unpack import unpacked
from lit_pretrain.prepare.source import SourceConfig

_BLOCK = 1 << 20


def records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw | BadRecord]:
    """Holds one line. One longer than three times the largest document and 1 MiB is too large, whatever it holds: the escapes of most
    alphabets are three times as long as their UTF-8, and there are other fields.
    """
    longest = 3 * policy.max_document_bytes + _BLOCK
    with unpacked(path) as file:
        number = 0
        while line := file.readline(longest):
            number += 1
            origin = f"{name}:{number}"
            if len(line) == longest and not line.endswith(b"\n"):
                beginning, length = line[:1000], len(line)
                del line
                while rest := file.readline(_BLOCK):
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
            what = f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not UTF-8 ({error.reason})"
            return BadRecord.of(origin, "undecodable", what, line)
        text, replaced = line.decode("utf-8-sig", errors="replace"), True
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python takes
        return BadRecord.of(origin, "not_json", f"not JSON: {error}", text)
    if not isinstance(record, dict):
        return BadRecord.of(origin, "not_json", f"a JSON {type(record).__name__}, not an object", text)
    try:
        content, fields = text_and_fields(record, source)
    except Unusable as error:
        return BadRecord.of(origin, error.reason, str(error), text)
    return Raw(origin, content, fields, replaced)
