"""Threshold: how much of a source may be bad before the run stops."""

from __future__ import annotations

from collections.abc import Mapping

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.read.records import BadRecord, ReadCounts

_CURES = {
    "not_json": "each line must hold one JSON object",
    "missing_field": "set the source's `fields`",
    "wrong_type": "set the source's `fields`",
    "duplicate_id": "leave `id` out of the source's `fields`",
    "undecodable": "convert the files to UTF-8, or set `errors: replace`",
    "too_large": "raise `max_document_bytes`, set `too_large: truncate`, or for text the source's `separator`",
    "damaged_file": "fetch the file again, or remove it",
}


def check_bad(name: str, counts: ReadCounts, examples: Mapping[str, BadRecord], limit: float) -> None:
    """Refuses a source too much of which could not be used.

    Args:
        name: The source's.
        counts: Of all its files.
        examples: Reason -> the first bad record.
        limit: `max_bad_fraction`, of the records, and of the input's bytes for what could not be read of damaged files.

    Raises:
        UserError: More is bad; lists the reasons with their counts and first examples, and what to do.
    """
    bad = counts.bad.total()
    too_many, too_much = bad > limit * counts.records, counts.unread_bytes > limit * counts.input_bytes
    if not (too_many or too_much):
        return
    found = []
    if bad:
        found.append(f"{bad:,} of {counts.records:,} records ({bad / max(1, counts.records):.2%})")
    if too_much:
        found.append(f"{counts.unread_bytes:,} of {counts.input_bytes:,} input bytes")
    lines = [f"sources.{name}: {' and '.join(found)} could not be used, more than max_bad_fraction={limit} allows:"]
    for reason, count in sorted(counts.bad.items(), key=lambda item: (-item[1], item[0])):
        first = examples[reason]
        shown = f" | {first.excerpt[:80]!r}" if first.excerpt else ""
        lines.append(f"  {count:,} {reason}, the first in {first.origin}: {first.detail}{shown}")
    cures = [f"{reason}: {_CURES[reason]}" for reason in sorted(counts.bad) if reason in _CURES]
    lines.append(f"What to do: {'; '.join([*cures, 'or raise max_bad_fraction'])}.")
    raise UserError("\n".join(lines))
