"""Report: what deduplication found, to be read: clusters, bytes, and pairs with both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lit_pretrain.hashing import splitmix64
from lit_pretrain.prepare.dedup.decide import REASONS, Removed
from lit_pretrain.prepare.document_store import Document

DEDUP_FILENAME = "duplicates.json"
_EXAMPLES = 10
"""Per reason: half of them the least similar pairs, where a threshold that is too low shows,
half drawn at random.
"""
_EXCERPT = 300

DuplicateExample = tuple[int, float, int, int]
"""(reason, similarity, removed, kept)"""


def findings(removed: Removed) -> dict[str, Any]:
    """What a group adds to the report, as JSON: examples that the whole may choose, and clusters,
    which lie in one group each.

    Returns:
        clusters (size with the one that stays -> how many), examples.
    """
    rows = list(
        zip(
            *(
                getattr(removed, name).tolist()
                for name in ("reason", "similarity", "document", "kept")
            ),
            strict=True,
        )
    )
    examples = set()
    for code in range(len(REASONS)):
        mine = [row for row in rows if row[0] == code]
        # Twice as many at random, for half of them may be among the least of the whole.
        examples |= {
            *sorted(mine, key=_least)[: _EXAMPLES // 2],
            *sorted(mine, key=_draw)[:_EXAMPLES],
        }
    clusters = Counter((np.unique(removed.kept, return_counts=True)[1] + 1).tolist())
    return {
        "clusters": {str(size): count for size, count in clusters.items()},
        "examples": sorted(examples),
    }


def dedup_report(
    groups: Sequence[Mapping[str, Any]],
    removed: Mapping[str, Mapping[str, int]],
    look_up: Callable[[set[int]], dict[int, tuple[str, Document]]],
) -> dict[str, Any]:
    """What was found, as JSON.

    Args:
        groups: The `findings` of each.
        removed: Documents and bytes by reason.
        look_up: For the examples.

    Returns:
        removed, clusters (size with the one that stays -> how many), examples.
    """
    clusters: Counter[int] = Counter()
    for group in groups:
        clusters.update({int(size): count for size, count in group["clusters"].items()})
    chosen = _chosen(tuple(row) for group in groups for row in group["examples"])
    found = look_up({number for row in chosen for number in row[2:]})
    examples = []
    for reason, similarity, document, kept in chosen:
        sides = {}
        for side, number in (("removed", document), ("kept", kept)):
            source, text = found[number]
            sides[side] = {
                "source": source,
                "origin": text.origin,
                "bytes": len(text.utf8),
                "text": text.text[:_EXCERPT],
            }
        examples.append({"reason": REASONS[reason], "similarity": round(similarity, 4), **sides})
    return {
        "removed": {reason: dict(removed[reason]) for reason in REASONS},
        "clusters": {str(size): count for size, count in sorted(clusters.items())},
        "examples": examples,
    }


def _chosen(rows: Iterable[DuplicateExample]) -> list[DuplicateExample]:
    """The examples of all groups: the same for any number of groups."""
    chosen: list[DuplicateExample] = []
    for mine in _by_reason(rows).values():
        least = sorted(mine, key=_least)[: _EXAMPLES // 2]
        drawn = sorted(set(mine) - set(least), key=_draw)[: _EXAMPLES - len(least)]
        chosen += [*least, *sorted(drawn, key=lambda row: row[2])]
    return chosen


def _by_reason(rows: Iterable[DuplicateExample]) -> dict[int, list[DuplicateExample]]:
    found: dict[int, list[DuplicateExample]] = {code: [] for code in range(len(REASONS))}
    for row in rows:
        found[row[0]].append(row)
    return found


def _least(row: DuplicateExample) -> tuple[float, int]:
    """Order of similarity."""
    return row[1], row[2]


def _draw(row: DuplicateExample) -> int:
    """Order of chance."""
    return int(splitmix64(np.array([row[2]], dtype=np.uint64))[0])
