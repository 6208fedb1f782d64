"""Detection of formats: find the one that reads all of what a file's rows hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lit_pretrain.chat.messages import BadRow
from lit_pretrain.chat.unread_fields import is_talk, what_is_unread
from lit_pretrain.data.chat.formats import ROW_FORMATS, RowFormat, find_format, has_parts
from lit_pretrain.data.chat.row_reader import expand_record, read_row
from lit_pretrain.errors import UserError

AUTO = "auto"
DETECTION_ROWS = 200
"""Rows that are looked at."""
DATA_OF_KIND = {
    "conversation": "ChatData",
    "preference": "PreferenceData",
    "verdict": "KTOData",
    "stepwise": "StepwiseData",
    "problem": "PromptData",
}
"""Kind of row -> data class that takes it."""


def detect_format(
    rows: Iterable[Mapping[str, Any]],
    *,
    kind: str,
    fields: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
    ignore: Collection[str],
    setting: str,
) -> str:
    """Return the name of the format that reads the first rows, and most of their fields.

    Args:
        rows: The rows.
        kind: conversation, preference, verdict, stepwise or problem.
        fields: A user's own names of fields.
        roles: A user's own names of roles.
        ignore: Fields that are passed over.
        setting: Name of the source's setting, for messages.

    Raises:
        UserError: No format of this kind reads them without a mistake.
    """
    sample = list(islice(rows, DETECTION_ROWS))
    found = _find(sample, kind, fields, roles, ignore, setting)
    if found.format is not None:
        return found.format
    others = {
        other: _find(sample, other, fields, roles, ignore, setting)
        for other in DATA_OF_KIND
        if other != kind and sample
    }
    most = max((other.read for other in others.values()), default=0)
    # A prompt alone says nothing of what stands beside it.
    bare = all(
        what_is_unread(name, value, []) in ("nothing", "label")
        for row in sample
        for name, value in row.items()
        if name != "prompt"
    )
    takers = [
        f"{DATA_OF_KIND[other]} takes them, as {found.format}"
        for other, found in others.items()
        if found.format is not None and found.read == most and (found.format != "prompt" or bare)
    ]
    names = ", ".join(sorted({repr(key) for row in sample for key in row})) or "none"
    tried = "".join(f"\n  {name}: {why}" for name, why in found.complaints.items())
    tried += f"\nThey are rows of another kind: {'; '.join(takers)}." if takers else ""
    tried += _likely(sample, kind) if not takers else ""
    raise UserError(
        f"{setting}.format=auto: no format gives a {kind} of rows with the fields {names}."
        f"{tried}\nName one with `format`, and the parts in `fields`."
    )


_ASKED = ("problem", "query", "question", "instruction", "input", "inputs", "prompt")
_ANSWERED = {
    "conversation": ("response", "output", "completion", "solution", "answer", "target", "targets"),
    "problem": ("answer", "final_answer", "ground_truth", "target", "targets"),
}
"""Usual names of questions and answers, the likeliest first."""


def _likely(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Propose fields for rows of an unknown layout, as a line."""
    shared = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    for name in shared if kind == "conversation" else ():
        for role in ("role", "from"):
            if all(is_talk(row[name], role) for row in rows):
                format = "messages" if role == "role" else "sharegpt"
                return f"\nPerhaps format: {format}, fields: {{messages: {name}}}."
    by_name = {name.lower(): name for name in shared}
    asked = next((by_name[name] for name in _ASKED if name in by_name), None)
    answered = next((by_name[name] for name in _ANSWERED.get(kind, ()) if name in by_name), None)
    if asked is None or answered is None:
        return ""
    part = "completion" if kind == "conversation" else "answer"
    return f"\nPerhaps format: prompt_{part}, fields: {{prompt: {asked}, {part}: {answered}}}."


class _Found(NamedTuple):
    format: str | None
    """The name of the format that reads the rows best, if one does."""
    read: int
    """Fields of the rows that it reads."""
    complaints: Mapping[str, str]
    """What the other formats with the needed fields find wrong."""


def _find(
    rows: Sequence[Mapping[str, Any]],
    kind: str,
    fields: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
    ignore: Collection[str],
    setting: str,
) -> _Found:
    """Find the format of a kind that reads rows, and most of their fields."""
    complaints: dict[str, str] = {}
    fits: dict[str, tuple[int, int, int]] = {}
    for name, format in ROW_FORMATS.items():
        if kind not in format.kinds() or set(fields or {}) - format.fields.keys():
            continue
        own = find_format(name, kind=kind, fields=fields, roles=roles, setting=setting)
        if not all(has_parts(row, own) for row in rows):
            continue
        if own.shape == "tree" and not all(
            isinstance(row.get(own.fields["prompt"]), Mapping) for row in rows
        ):
            continue
        complaint = _complaint(rows, own, kind, ignore)
        if complaint is not None:
            complaints[name] = complaint
            continue
        paths = {path.split(".")[0] for path in own.fields.values()}
        # Messages say more than fields with a question and an answer beside them.
        talks = sum(is_talk(row[name]) for row in rows for name in paths & row.keys())
        narrow = own.shape != "text" and (own.shape != "plain" or _marks(own, kind))
        read = sum(len((paths | own.unused) & row.keys()) for row in rows)
        fits[name] = (talks, read, int(narrow))
    if not fits:
        return _Found(None, 0, complaints)
    best = max(fits, key=lambda name: fits[name])  # the first of equals
    return _Found(best, fits[best][1], complaints)


def _marks(format: RowFormat, kind: str) -> bool:
    return kind == "problem" and format.answer_after is not None


def _complaint(
    rows: Sequence[Mapping[str, Any]], format: RowFormat, kind: str, ignore: Collection[str]
) -> str | None:
    """Return what a format finds wrong with rows; None if it reads them."""
    for row in rows:
        try:
            expanded = expand_record(row, format, kind=kind, ignore=ignore)
            for part in expanded.rows:
                read_row(part, expanded.format, kind=kind, ignore=ignore)
        except BadRow as bad:
            if bad.mistake:
                return str(bad)
    return None
