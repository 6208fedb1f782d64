"""Evaluation sets: their config and items, and what decontamination finds of them.

A hash recognises a set. A tally counts hits, and each set leaves a record in the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex


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


_EXAMPLES = 10
"""Examples kept per set."""


@dataclass(frozen=True)
class DecontaminationHit:
    """Locate one item of an evaluation set in a text."""

    set: str
    """Name of the evaluation set."""
    item: int
    """Record of the set, from 1."""
    ngrams: int
    """Places in the text at which an n-gram of the item, or the whole of a shorter text, begins."""
    excerpt: str
    """The first of them with its surroundings, in plain words: the text's side."""
    evaluation: str
    """The same place in the item: the set's side."""


@dataclass(frozen=True)
class DecontaminationRecord:
    """State how data was decontaminated against one evaluation set, and what was found.

    A score on the set is clean if every stage of the network has such a record, with `clean`.
    """

    name: str
    """Name of the set in the config."""
    file_sha256: str
    """sha256 of the file as it lay on disk."""
    content_sha256: str
    """sha256 of the records, whatever the file's name, format and order
    (`evaluation_set.content_sha256`).
    """
    fields: tuple[str, ...]
    """The fields of a record that were looked for."""
    items: int
    """Records of the set."""
    unchecked_items: int
    """Records that are too short to be told from chance, and were not looked for."""
    ngram: int
    """Words in a row that make a hit."""
    min_words: int
    """Shorter texts were looked for as a whole, down to this number of words."""
    action: str
    """remove or mark: what happened to documents with a hit."""
    documents_hit: int
    """Documents with a hit, over all sources."""
    items_hit: int
    """Records of the set found in at least one document."""
    licence: str | None = None
    """Licence of the set, in the words of the config."""
    origin: str | None = None
    """Where the set came from, in the words of the config."""

    @property
    def clean(self) -> bool:
        """Tell whether no checked item is left: hits were removed, or there were none."""
        return self.action == "remove" or self.documents_hit == 0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DecontaminationRecord:
        """Invert `dataclasses.asdict` through JSON."""
        return cls(**{**raw, "fields": tuple(raw["fields"])})


class ExampleHitRecord(TypedDict):
    """A `DecontaminationExample` as JSON."""

    item: int
    source: str
    origin: str
    ngrams: int
    document: str
    evaluation: str


class SetTallyRecord(TypedDict):
    """An `EvaluationSetTally` as JSON."""

    documents: int
    items: dict[str, int]
    examples: list[ExampleHitRecord]


TallyRecord = dict[str, SetTallyRecord]
"""A `DecontaminationTally` as JSON: name of the evaluation set -> its tally."""


@dataclass(frozen=True, order=True)
class DecontaminationExample:
    """Show one hit from both sides."""

    item: int
    """Record of the set, from 1."""
    source: str
    """Source of the document or row."""
    origin: str
    """Its origin, as in `Document`."""
    ngrams: int
    """Places of the document at which an n-gram of the item begins."""
    document: str
    """The match in brackets and what stands around it, in plain words."""
    evaluation: str
    """The same place in the item."""


@dataclass
class EvaluationSetTally:
    """Count the hits of one set."""

    documents: int = 0
    """Documents with at least one hit."""
    items: Counter[int] = field(default_factory=Counter)
    """Item -> documents that hold it. One in very many documents is likely a common phrase:
    look at it before trusting the count.
    """
    examples: list[DecontaminationExample] = field(default_factory=list)
    """The first by item, source and origin, one per item."""

    def offer(self, example: DecontaminationExample) -> None:
        """Keep the smallest examples, whatever the order in which they come."""
        best = {kept.item: kept for kept in self.examples}
        best[example.item] = min(example, best.get(example.item, example))
        self.examples = heapq.nsmallest(_EXAMPLES, best.values())


class DecontaminationTally:
    """Count hits over documents.

    Tallies of tasks add up to the same whole in any order, and go through JSON.
    """

    def __init__(self) -> None:
        self.sets: dict[str, EvaluationSetTally] = {}

    def add(self, source: str, origin: str, hits: Sequence[DecontaminationHit]) -> None:
        """Count the hits of one document or row."""
        for name in dict.fromkeys(hit.set for hit in hits):
            self.sets.setdefault(name, EvaluationSetTally()).documents += 1
        for hit in hits:
            tally = self.sets[hit.set]
            tally.items[hit.item] += 1
            tally.offer(
                DecontaminationExample(
                    hit.item, source, origin, hit.ngrams, hit.excerpt, hit.evaluation
                )
            )

    def merge(self, other: DecontaminationTally) -> None:
        """Add the counts of another task."""
        for name, theirs in other.sets.items():
            ours = self.sets.setdefault(name, EvaluationSetTally())
            ours.documents += theirs.documents
            ours.items.update(theirs.items)
            for example in theirs.examples:
                ours.offer(example)

    def to_json(self) -> TallyRecord:
        """Return a JSON value, which is the same for equal tallies."""
        return {
            name: SetTallyRecord(
                documents=tally.documents,
                items={str(item): count for item, count in sorted(tally.items.items())},
                examples=[
                    ExampleHitRecord(
                        item=example.item,
                        source=example.source,
                        origin=example.origin,
                        ngrams=example.ngrams,
                        document=example.document,
                        evaluation=example.evaluation,
                    )
                    for example in tally.examples
                ],
            )
            for name, tally in sorted(self.sets.items())
        }

    @classmethod
    def from_json(cls, raw: TallyRecord) -> DecontaminationTally:
        """Invert `to_json`."""
        tally = cls()
        for name, counted in raw.items():
            items = Counter({int(item): count for item, count in counted["items"].items()})
            tally.sets[name] = EvaluationSetTally(
                counted["documents"],
                items,
                [DecontaminationExample(**example) for example in counted["examples"]],
            )
        return tally


def decontamination_records(
    index: DecontaminationIndex, tally: DecontaminationTally, config: DecontaminateConfig
) -> tuple[DecontaminationRecord, ...]:
    """Return one record per evaluation set, for the manifest.

    They are sorted by name, so that the order of the config makes no difference.
    """
    records = []
    for described in index.sets:
        counted = tally.sets.get(described.name, EvaluationSetTally())
        records.append(
            DecontaminationRecord(
                **{
                    spec.name: getattr(described, spec.name)
                    for spec in dataclasses.fields(described)
                },
                ngram=index.ngram,
                min_words=index.min_words,
                action=config.action,
                documents_hit=counted.documents,
                items_hit=len(counted.items),
            )
        )
    return tuple(records)
