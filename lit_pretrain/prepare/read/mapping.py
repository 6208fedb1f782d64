"""Mapping: from the fields of a record to a text and what else is told about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lit_pretrain.prepare.source import SourceConfig

_ABSENT = object()


class Unusable(Exception):
    """A record whose fields are not what the source's config says.

    Args:
        reason: missing_field or wrong_type.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def text_and_fields(record: Mapping[str, Any], source: SourceConfig) -> tuple[str, dict[str, str]]:
    """The text of a JSON object, and its other fields by our names.

    Raises:
        Unusable: A field of the text is missing or holds no text. Other fields may be missing, and are written as text.
    """
    parts: list[str | None] = []
    for field in source.text_fields:
        value = _lookup(record, field)
        if value is _ABSENT:
            raise Unusable("missing_field", f"no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}")
        if value is not None and not isinstance(value, str):
            raise Unusable("wrong_type", f"the field {field!r} holds {type(value).__name__}, not text")
        parts.append(value)
    others = {ours: _lookup(record, theirs) for ours, theirs in source.other_fields.items()}
    return joined(parts), as_text(others)


def joined(parts: Iterable[str | None]) -> str:
    """Those that hold something, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """Those that are there, written as text that UTF-8 can hold."""
    return {
        name: str(value).encode("utf-8", "replace").decode() for name, value in fields.items() if value is not None and value is not _ABSENT
    }


def _lookup(record: Mapping[str, Any], field: str) -> Any:
    """By its whole name, else along the dots."""
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value
