"""ReadCounts: how many records were read, and how many of them may be bad before the run stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.read.records import BadRecord

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
"""Reason why a record is bad -> what the user can do about it."""


@dataclass
class ReadCounts:
    """What was read so far; the counts of several readers can be added."""

    input_bytes: int = 0
    """Size of the files opened, as stored."""
    records: int = 0
    """Documents, records without text and bad records."""
    documents: int = 0
    """Documents passed on."""
    bytes: int = 0
    """UTF-8 bytes of their text."""
    empty: Counter[str] = field(default_factory=Counter)
    """Reason -> records without text that are no fault: empty, no_text (a page without main text),
    not_a_page.
    """
    bad: Counter[str] = field(default_factory=Counter)
    """Reason -> bad records."""
    changed: Counter[str] = field(default_factory=Counter)
    """Change -> documents that were changed: replaced, truncated."""
    unread_bytes: int = 0
    """Bytes of damaged files that nothing was read from."""

    @property
    def removed(self) -> dict[str, int]:
        """Reason -> records left out, sorted by reason, for the funnel."""
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


def check_bad(
    name: str, counts: ReadCounts, examples: Mapping[str, BadRecord], limit: float
) -> None:
    """Refuse a source too much of which could not be used.

    Args:
        name: Name of the source.
        counts: Counts over all its files.
        examples: Reason -> the first bad record.
        limit: `max_bad_fraction`: of the records, and of the input's bytes for what could not be
            read of damaged files.

    Raises:
        UserError: More is bad. The message lists the reasons with their counts and first examples,
            and what to do.
    """
    bad = counts.bad.total()
    too_many = bad > limit * counts.records
    too_much = counts.unread_bytes > limit * counts.input_bytes
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
