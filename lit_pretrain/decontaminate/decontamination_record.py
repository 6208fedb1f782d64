"""What decontamination finds: hits, their tally, and a record of each set for the manifest."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig

if TYPE_CHECKING:
    from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex

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
