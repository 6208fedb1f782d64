"""Records: what the readers of the formats yield, and how it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
    """A record that holds no text without being damaged, such as an image in a crawl: counted, and no fault."""

    reason: str


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used; the fields are what the reject file shows."""

    origin: str
    """As a document's origin; the file alone where all of it or its rest is meant."""
    reason: str
    """not_json, missing_field, wrong_type, duplicate_id, undecodable, too_large, unparsable or damaged_file."""
    detail: str
    """What was found."""
    excerpt: str = ""
    """The record's beginning."""
    unread_bytes: int = 0
    """Bytes of the file, as stored, that nothing was read from."""

    @staticmethod
    def of(origin: str, reason: str, detail: str, content: str | bytes = "") -> BadRecord:
        """Keeps the beginning of detail and content, in characters that can be written."""
        text = content[: 4 * EXCERPT].decode(errors="replace") if isinstance(content, bytes) else content[:EXCERPT]
        return BadRecord(origin, reason, _writable(detail)[:EXCERPT], _writable(text)[:EXCERPT])


class Damaged(Exception):
    """The rest of a file cannot be read.

    Args:
        cause: What was found.
        unread_bytes: Bytes of the file, as stored, that nothing was read from.
    """

    def __init__(self, cause: str, unread_bytes: int) -> None:
        super().__init__(cause)
        self.unread_bytes = max(1, unread_bytes)  # what a cut file lacks cannot be known, but it is something


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
    """Reason -> records without text, no fault of theirs: empty, no_text (a page without main text), not_a_page."""
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
