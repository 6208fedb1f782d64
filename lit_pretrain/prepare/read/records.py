"""Records: what a reader makes of each entry of a file: a text, nothing, or a fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pretrain.prepare.prepare_config import SourceConfig

EXCERPT = 300
"""Characters of a bad record that are kept to look at."""


@dataclass(frozen=True)
class ReadPolicy:
    """What to do with records that are not as they should be."""

    errors: Literal["replace", "skip"] = "skip"
    """Text that is not UTF-8: replace the bytes by U+FFFD, or reject the record."""
    too_large: Literal["truncate", "skip"] = "skip"
    """A document above the limit: keep its beginning, or reject it."""
    max_document_bytes: int = 50_000_000
    """The limit, in UTF-8 bytes; it also bounds the memory."""


@dataclass(frozen=True)
class RawText:
    """The text of a record as the file holds it, before the policies."""

    origin: str
    """Name of the file, and the record's number where it holds several: `a.jsonl:17`."""
    content: str | bytes
    fields: Mapping[str, str] = field(default_factory=dict)
    """What else the record says about the document, by our names (`TEXT_FIELDS`)."""
    replaced: bool = False
    """Whether the reader has replaced bytes that are not UTF-8."""


@dataclass(frozen=True)
class NoText:
    """A record without text that is no fault, such as an image in a crawl; it is only counted."""

    reason: str


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used; the fields are what the reject file shows."""

    origin: str
    """As a document's origin; the file alone where all of it or its rest is meant."""
    reason: str
    """not_json, missing_field, wrong_type, duplicate_id, undecodable, too_large, unparsable or
    damaged_file.
    """
    detail: str
    """What was found."""
    excerpt: str = ""
    """The record's beginning."""
    unread_bytes: int = 0
    """Bytes of the file, as stored, that nothing was read from."""

    @staticmethod
    def of(
        origin: str, reason: str, detail: str, content: str | bytes = "", unread_bytes: int = 0
    ) -> BadRecord:
        """Keep the beginning of detail and content, in characters that can be written."""
        text = (
            content[: 4 * EXCERPT].decode(errors="replace")
            if isinstance(content, bytes)
            else content[:EXCERPT]
        )
        return BadRecord(
            origin, reason, _writable(detail)[:EXCERPT], _writable(text)[:EXCERPT], unread_bytes
        )


class DamagedFile(Exception):
    """The rest of a file cannot be read.

    Args:
        cause: What was found.
        unread_bytes: Bytes of the file, as stored, that nothing was read from.
    """

    def __init__(self, cause: str, unread_bytes: int) -> None:
        super().__init__(cause)
        # What a cut file lacks cannot be known, but it is something.
        self.unread_bytes = max(1, unread_bytes)


class UnusableRecord(Exception):
    """The fields of a record are not what the source's config says.

    Args:
        reason: missing_field or wrong_type.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_ABSENT = object()


def text_and_fields(record: Mapping[str, Any], source: SourceConfig) -> tuple[str, dict[str, str]]:
    """Take the text out of a JSON object, and its other fields by our names.

    Raises:
        UnusableRecord: A field of the text is missing or holds no text. Other fields may be
            missing; their values are written as text.
    """
    parts: list[str | None] = []
    for name in source.text_fields:
        value = _lookup(record, name)
        if value is _ABSENT:
            raise UnusableRecord(
                "missing_field",
                f"no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}",
            )
        if value is not None and not isinstance(value, str):
            raise UnusableRecord(
                "wrong_type", f"the field {name!r} holds {type(value).__name__}, not text"
            )
        parts.append(value)
    others = {ours: _lookup(record, theirs) for ours, theirs in source.other_fields.items()}
    return join_texts(parts), as_text(others)


def join_texts(parts: Iterable[str | None]) -> str:
    """Join the parts that hold something, with a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """Write the fields that are present as text that UTF-8 can hold."""
    return {
        name: _writable(str(value))
        for name, value in fields.items()
        if value is not None and value is not _ABSENT
    }


def _lookup(record: Mapping[str, Any], field: str) -> Any:
    """Look a field up by its whole name, else along the dots."""
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _writable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
