"""Evaluation sets: their config, the texts of their items, and a hash that recognises a set."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pretrain.errors import UserError


@dataclass(kw_only=True)
class EvaluationSet:
    """One file of items that models are scored on."""

    path: str
    """jsonl, json (a list of objects), parquet or txt; all but parquet also packed (.gz, .zst,
    .bz2).
    """
    fields: list[str] = field(default_factory=lambda: ["text"])
    """Fields of an item to look for. Each is looked for on its own, because a leak may hold the
    question without the answer, and an n-gram across both would depend on the layout. `a + b` joins
    fields that are read as one text (a stem and its endings). A field with a list gives one text
    per element; `a.b` looks into an object. Txt files have the field `text`.
    """
    separator: str = "\n"
    """Txt only: what stands between items; "\\n\\n" makes each paragraph one."""
    licence: str | None = None
    """Licence of the set, for the manifest."""
    origin: str | None = None
    """Where the set came from, in words, for the manifest."""


@dataclass(kw_only=True)
class DecontaminateConfig:
    """Evaluation sets that the data must not contain.

    A document is hit when it holds `ngram` words in a row of an item, or the whole of a shorter
    text; case, punctuation and white space make no difference (`hashing.plain_words`).
    """

    against: dict[str, EvaluationSet] = field(default_factory=dict)
    """Name -> file. A score on a set that is not named here can never be called clean."""
    ngram: int = 13
    """Words in a row that make a hit. 13 as in GPT-3 (Brown et al. 2020, appendix C)."""
    min_words: int = 8
    """Texts shorter than `ngram` are looked for as a whole when they have at least so many words.
    Shorter ones ("the toilet filled with water") occur in documents that leak nothing; an item with
    no longer text is counted as unchecked.
    """
    action: Literal["remove", "mark"] = "remove"
    """remove: the document is left out. mark: it stays, with the names of the sets in its field
    `contamination`.
    """

    def validate(self) -> None:
        """Check what the types cannot say.

        Raises:
            UserError: A value is out of range, or a set has no fields.
        """
        if not 2 <= self.ngram <= 100:
            raise UserError(
                f"decontaminate.ngram={self.ngram} must lie between 2 and 100 words; 13 is usual"
            )
        if not 1 <= self.min_words <= self.ngram:
            raise UserError(
                f"decontaminate.min_words={self.min_words} must lie between 1 and"
                f" ngram={self.ngram}; at ngram, shorter texts go unchecked"
            )
        for name, evaluation_set in self.against.items():
            if not name:
                raise UserError("decontaminate.against: a set has an empty name")
            if not evaluation_set.fields or not all(
                part.strip() for item in evaluation_set.fields for part in item.split("+")
            ):
                raise UserError(
                    f"decontaminate.against.{name}.fields={evaluation_set.fields!r} must name at"
                    " least one field, e.g. [question]"
                )
            if not evaluation_set.separator:
                raise UserError(
                    f"decontaminate.against.{name}.separator is empty; give the text between items,"
                    " or leave it out"
                )


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
    for combined in fields:
        parts = [
            _values(record, name.strip().split("."), f"{where}: the field {name.strip()!r}")
            for name in combined.split("+")
        ]
        texts.update(
            dict.fromkeys(" ".join(combination) for combination in itertools.product(*parts))
        )
    return list(texts)


def content_sha256(records: Iterable[Mapping[str, Any]]) -> str:
    """Hash the records as a bag.

    The hash does not depend on the file's name, format or packing, nor on the order of its rows and
    keys.
    """
    canonical = sorted(
        json.dumps(record, sort_keys=True, separators=(",", ":"), default=str) for record in records
    )
    return hashlib.sha256("\n".join(canonical).encode()).hexdigest()


def _values(value: Any, names: list[str], where: str) -> Iterator[str]:
    """Yield the texts at the end of a path: none for null, the digits of a number."""
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
