"""Evaluation sets: the texts of their items, and a hash that recognises a set by its content."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lit_pretrain.errors import UserError


def texts_of(record: Mapping[str, Any], fields: Iterable[str], where: str) -> list[str]:
    """Return the texts of a record that count, in the order of `fields`, without repetitions.

    Args:
        record: One record of `read_records`.
        fields: Each gives texts of its own. `a.b` looks into the object `a`. A field that holds a
            list gives one text per element. `a + b` joins fields by a space; with lists, each
            element with each.
        where: File and number of the record, for messages.

    Raises:
        UserError: A field is missing, or holds no text.
    """
    texts: dict[str, None] = {}
    for field in fields:
        parts = [
            _values(record, name.strip().split("."), f"{where}: the field {name.strip()!r}")
            for name in field.split("+")
        ]
        texts.update(
            dict.fromkeys(" ".join(combination) for combination in itertools.product(*parts))
        )
    return list(texts)


def content_sha256(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the sha256 of the records as a bag.

    It is the same whatever the file's name, format, packing, and the order of its rows and keys.
    """
    canonical = sorted(
        json.dumps(record, sort_keys=True, separators=(",", ":"), default=str) for record in records
    )
    return hashlib.sha256("\n".join(canonical).encode()).hexdigest()


def _values(value: Any, names: list[str], where: str) -> Iterator[str]:
    """Yield the texts at the end of a path; null gives none, a number its digits."""
    if isinstance(value, list):
        for element in value:
            yield from _values(element, names, where)
    elif value is None:
        return
    elif names:
        if not isinstance(value, dict) or names[0] not in value:
            has = (
                f"it has {', '.join(map(repr, value)) or 'none'}"
                if isinstance(value, dict)
                else f"{type(value).__name__} has no fields"
            )
            raise UserError(f"{where} is missing ({has}). Correct `fields`.")
        yield from _values(value[names[0]], names[1:], where)
    elif isinstance(value, str | int | float):
        yield str(value)
    else:
        raise UserError(
            f"{where} holds an object ({', '.join(map(repr, value))}), not text. Name one of its"
            " fields after a dot."
        )
