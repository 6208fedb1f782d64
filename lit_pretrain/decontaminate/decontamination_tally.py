"""Decontamination tally: hits per evaluation set, with examples, and the manifest's records."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_pretrain.decontaminate.decontamination_index import (
    DecontaminationHit,
    DecontaminationIndex,
)
from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig

_EXAMPLES = 10
"""Kept per set."""


@dataclass(frozen=True, order=True)
class DecontaminationExample:
    """Show one hit from both sides."""

    item: int
    """Record of the set, from 1."""
    source: str
    """Of the document."""
    origin: str
    """Of the document, as in `Document`."""
    ngrams: int
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

    def example(self, example: DecontaminationExample) -> None:
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
            tally.example(
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
                ours.example(example)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, which is the same for equal tallies."""
        return {
            name: {
                "documents": tally.documents,
                "items": {str(item): count for item, count in sorted(tally.items.items())},
                "examples": [dataclasses.asdict(example) for example in tally.examples],
            }
            for name, tally in sorted(self.sets.items())
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DecontaminationTally:
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
