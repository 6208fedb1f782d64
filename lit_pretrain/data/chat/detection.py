"""Detection of formats: find the one that reads all of what a file's rows hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from lit_pretrain.chat.messages import BadRow
from lit_pretrain.data.chat.formats import ROW_FORMATS, RowFormat, find_format, has_parts
from lit_pretrain.data.chat.row_reader import expand_record, read_row
from lit_pretrain.errors import UserError

AUTO = "auto"
DETECTION_ROWS = 200
"""Rows that are looked at."""


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
        kind: conversation, preference, verdict or problem.
        fields: A user's own names of fields.
        roles: A user's own names of roles.
        ignore: Fields that are passed over.
        setting: Name of the source's setting, for messages.

    Raises:
        UserError: No format of this kind reads them without a mistake.
    """
    sample = list(islice(rows, DETECTION_ROWS))
    complaints: dict[str, str] = {}
    fitting: list[str] = []
    for name, format in ROW_FORMATS.items():
        if kind not in format.kinds() or set(fields or {}) - format.fields.keys():
            continue
        own = find_format(name, kind=kind, fields=fields, roles=roles, setting=setting)
        if not all(has_parts(row, own) for row in sample):
            continue
        complaint = _complaint(sample, own, kind, ignore)
        if complaint is None:
            fitting.append(name)
        else:
            complaints[name] = complaint
    if not fitting:
        found = ", ".join(sorted({repr(key) for row in sample for key in row})) or "none"
        tried = "".join(f"\n  {name}: {why}" for name, why in complaints.items())
        raise UserError(
            f"{setting}.format=auto: no format gives a {kind} of rows with the fields {found}."
            f"{tried}\nName one with `format`, and the parts in `fields`."
        )

    def fit(name: str) -> tuple[int, int]:
        format = replace(ROW_FORMATS[name], fields={**ROW_FORMATS[name].fields, **(fields or {})})
        read = {path.split(".")[0] for path in format.fields.values()} | format.unused
        narrow = format.shape != "text" and (format.shape != "plain" or _marks(format, kind))
        return sum(len(read & row.keys()) for row in sample), int(narrow)

    return max(fitting, key=fit)  # the first of equals


def _marks(format: RowFormat, kind: str) -> bool:
    return kind == "problem" and format.answer_after is not None


def _complaint(
    rows: Sequence[Mapping[str, Any]], format: RowFormat, kind: str, ignore: Collection[str]
) -> str | None:
    """Return what a format finds wrong with rows; None if it reads them."""
    for row in rows:
        try:
            parts, plain = expand_record(row, format, kind=kind, ignore=ignore)
            for part in parts:
                read_row(part, plain, kind=kind, ignore=ignore)
        except BadRow as bad:
            if bad.mistake:
                return str(bad)
    return None
