"""The report of deduplication, to be read: clusters, bytes, and pairs with both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from lit_pretrain.prepare.dedup.decide import (
    REASONS,
    DuplicateExample,
    Removed,
    RemovedCounts,
    at_random,
)
from lit_pretrain.prepare.document_store import Document

DEDUP_FILENAME = "duplicates.json"
_EXAMPLES = 10
"""Examples for each reason. Half of them are the least similar pairs, where a threshold that is too
low shows; half are drawn at random.
"""
_EXCERPT = 300
"""Characters of a document that an example shows."""


class Findings(TypedDict):
    """What a group adds to the report."""

    clusters: dict[str, int]
    """Size of a cluster, with the document that stays -> how many there are."""
    examples: list[DuplicateExample]
    """Examples among which the report chooses."""


class DuplicateSide(TypedDict):
    """One document of an example."""

    source: str
    origin: str
    bytes: int
    text: str


class DuplicatePair(TypedDict):
    """An example with both sides."""

    reason: str
    similarity: float
    removed: DuplicateSide
    kept: DuplicateSide


class DedupReport(TypedDict):
    """The report, as its file holds it."""

    removed: dict[str, RemovedCounts]
    clusters: dict[str, int]
    examples: list[DuplicatePair]


def findings(removed: Removed) -> Findings:
    """Collect what a group adds to the report; a cluster lies in one group as a whole."""
    rows = list(
        zip(
            removed.reason.tolist(),
            removed.similarity.tolist(),
            removed.document.tolist(),
            removed.kept.tolist(),
            strict=True,
        )
    )
    examples: set[DuplicateExample] = set()
    for code in range(len(REASONS)):
        mine = [row for row in rows if row[0] == code]
        # Twice as many at random, for half of them may be among the least similar of the whole.
        examples |= {
            *sorted(mine, key=_by_similarity)[: _EXAMPLES // 2],
            *sorted(mine, key=random_order)[:_EXAMPLES],
        }
    clusters = Counter((np.unique(removed.kept, return_counts=True)[1] + 1).tolist())
    return Findings(
        clusters={str(size): count for size, count in clusters.items()}, examples=sorted(examples)
    )


def dedup_report(
    groups: Sequence[Findings],
    removed: Mapping[str, RemovedCounts],
    look_up: Callable[[set[int]], dict[int, tuple[str, Document]]],
) -> DedupReport:
    """Write the report.

    Args:
        groups: The `findings` of each group.
        removed: Documents and bytes by reason.
        look_up: Finds source and text of documents by their number, for the examples.
    """
    clusters: Counter[int] = Counter()
    for group in groups:
        clusters.update({int(size): count for size, count in group["clusters"].items()})
    # As JSON, tuples have become lists.
    chosen = _choose((a, b, c, d) for group in groups for a, b, c, d in group["examples"])
    found = look_up({number for row in chosen for number in row[2:]})
    return DedupReport(
        removed={
            reason: RemovedCounts(
                documents=removed[reason]["documents"], bytes=removed[reason]["bytes"]
            )
            for reason in REASONS
        },
        clusters={str(size): count for size, count in sorted(clusters.items())},
        examples=[
            DuplicatePair(
                reason=REASONS[reason],
                similarity=round(similarity, 4),
                removed=_side(*found[document]),
                kept=_side(*found[kept]),
            )
            for reason, similarity, document, kept in chosen
        ],
    )


def _side(source: str, document: Document) -> DuplicateSide:
    """Show one document of a pair."""
    return DuplicateSide(
        source=source,
        origin=document.origin,
        bytes=len(document.utf8),
        text=document.text[:_EXCERPT],
    )


def _choose(rows: Iterable[DuplicateExample]) -> list[DuplicateExample]:
    """Choose among the examples of all groups; the number of groups makes no difference."""
    by_reason: dict[int, list[DuplicateExample]] = {code: [] for code in range(len(REASONS))}
    for row in rows:
        by_reason[row[0]].append(row)
    chosen: list[DuplicateExample] = []
    for mine in by_reason.values():
        least = sorted(mine, key=_by_similarity)[: _EXAMPLES // 2]
        drawn = sorted(set(mine) - set(least), key=random_order)[: _EXAMPLES - len(least)]
        chosen += [*least, *sorted(drawn, key=lambda row: row[2])]
    return chosen


def _by_similarity(row: DuplicateExample) -> tuple[float, int]:
    """Order examples by similarity, then as in the corpus."""
    return row[1], row[2]


def random_order(row: DuplicateExample) -> int:
    """Order examples at random, by a hash of the document's number."""
    return int(at_random(np.array([row[2]]))[0])
