"""Records: what the readers of the formats yield, and how it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.prepare_config import SourceConfig

# Mapping: from the fields of a record to a text and what else is told about it.


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
        Unusable: A field of the text is missing or holds no text. Other fields may be missing, and
            are written as text.
    """
    parts: list[str | None] = []
    for name in source.text_fields:
        value = _lookup(record, name)
        if value is _ABSENT:
            raise Unusable(
                "missing_field",
                f"no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}",
            )
        if value is not None and not isinstance(value, str):
            raise Unusable(
                "wrong_type", f"the field {name!r} holds {type(value).__name__}, not text"
            )
        parts.append(value)
    others = {ours: _lookup(record, theirs) for ours, theirs in source.other_fields.items()}
    return join_fields(parts), as_text(others)


def join_fields(parts: Iterable[str | None]) -> str:
    """Those that hold something, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """Those that are there, written as text that UTF-8 can hold."""
    return {
        name: str(value).encode("utf-8", "replace").decode()
        for name, value in fields.items()
        if value is not None and value is not _ABSENT
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


EXCERPT = 300
"""Most characters of a bad record that are kept to look at."""


@dataclass(frozen=True)
class ReadPolicy:
    """What to do with records that are not as they should be."""

    errors: Literal["replace", "skip"] = "skip"
    """Text that is not UTF-8: U+FFFD in place of the bytes, or rejected."""
    too_large: Literal["truncate", "skip"] = "skip"
    """A document above the limit: its beginning, or rejected."""
    max_document_bytes: int = 50_000_000
    """The limit, in UTF-8 bytes; also bounds the memory."""


@dataclass(frozen=True)
class Raw:
    """A text as the format gives it, before the policies."""

    origin: str
    content: str | bytes
    fields: Mapping[str, str] = field(default_factory=dict)
    replaced: bool = False
    """Whether bytes that are not UTF-8 were replaced already."""


@dataclass(frozen=True)
class Nothing:
    """A record that holds no text without being damaged, such as an image in a crawl: counted,
    and no fault.
    """

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
    def of(origin: str, reason: str, detail: str, content: str | bytes = "") -> BadRecord:
        """Keeps the beginning of detail and content, in characters that can be written."""
        text = (
            content[: 4 * EXCERPT].decode(errors="replace")
            if isinstance(content, bytes)
            else content[:EXCERPT]
        )
        return BadRecord(origin, reason, _writable(detail)[:EXCERPT], _writable(text)[:EXCERPT])


class Damaged(Exception):
    """The rest of a file cannot be read.

    Args:
        cause: What was found.
        unread_bytes: Bytes of the file, as stored, that nothing was read from.
    """

    def __init__(self, cause: str, unread_bytes: int) -> None:
        super().__init__(cause)
        self.unread_bytes = max(
            1, unread_bytes
        )  # what a cut file lacks cannot be known, but it is something


@dataclass
class ReadCounts:
    """What was read so far; those of several readers can be added."""

    input_bytes: int = 0
    """Of the files opened, as stored."""
    records: int = 0
    """Documents, records without text and bad records."""
    documents: int = 0
    """Documents given on."""
    bytes: int = 0
    """UTF-8 bytes of their text."""
    empty: Counter[str] = field(default_factory=Counter)
    """Reason -> records without text, no fault of theirs: empty, no_text (a page without main
    text), not_a_page.
    """
    bad: Counter[str] = field(default_factory=Counter)
    """Reason -> bad records."""
    changed: Counter[str] = field(default_factory=Counter)
    """Alteration -> documents altered: replaced, truncated."""
    unread_bytes: int = 0
    """Of damaged files."""

    @property
    def removed(self) -> dict[str, int]:
        """Reason -> records left out, for the funnel; sorted by reason."""
        return dict(sorted((self.empty + self.bad).items()))

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(
            input_bytes=self.input_bytes + other.input_bytes,
            records=self.records + other.records,
            documents=self.documents + other.documents,
            bytes=self.bytes + other.bytes,
            empty=self.empty + other.empty,
            bad=self.bad + other.bad,
            changed=self.changed + other.changed,
            unread_bytes=self.unread_bytes + other.unread_bytes,
        )


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


# Threshold: how much of a source may be bad before the run stops.


_CURES = {
    "not_json": "each line must hold one JSON object",
    "missing_field": "set the source's `fields`",
    "wrong_type": "set the source's `fields`",
    "duplicate_id": "leave `id` out of the source's `fields`",
    "undecodable": "convert the files to UTF-8, or set `errors: replace`",
    "too_large": (
        "raise `max_document_bytes`, set `too_large: truncate`, or for text the source's"
        " `separator`"
    ),
    "damaged_file": "fetch the file again, or remove it",
}


def check_bad(
    name: str, counts: ReadCounts, examples: Mapping[str, BadRecord], limit: float
) -> None:
    """Refuses a source too much of which could not be used.

    Args:
        name: The source's.
        counts: Of all its files.
        examples: Reason -> the first bad record.
        limit: `max_bad_fraction`, of the records, and of the input's bytes for what could not be
            read of damaged files.

    Raises:
        UserError: More is bad; lists the reasons with their counts and first examples, and what to
            do.
    """
    bad = counts.bad.total()
    too_many, too_much = (
        bad > limit * counts.records,
        counts.unread_bytes > limit * counts.input_bytes,
    )
    if not (too_many or too_much):
        return
    found = []
    if bad:
        found.append(f"{bad:,} of {counts.records:,} records ({bad / max(1, counts.records):.2%})")
    if too_much:
        found.append(f"{counts.unread_bytes:,} of {counts.input_bytes:,} input bytes")
    lines = [
        f"sources.{name}: {' and '.join(found)} could not be used, more than"
        f" max_bad_fraction={limit} allows:"
    ]
    for reason, count in sorted(counts.bad.items(), key=lambda item: (-item[1], item[0])):
        first = examples[reason]
        shown = f" | {first.excerpt[:80]!r}" if first.excerpt else ""
        lines.append(f"  {count:,} {reason}, the first in {first.origin}: {first.detail}{shown}")
    cures = [f"{reason}: {_CURES[reason]}" for reason in sorted(counts.bad) if reason in _CURES]
    lines.append(f"What to do: {'; '.join([*cures, 'or raise max_bad_fraction'])}.")
    raise UserError("\n".join(lines))
