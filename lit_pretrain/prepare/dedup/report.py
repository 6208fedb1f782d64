"""Report: what deduplication found, to be read: clusters, bytes, and pairs with both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.permutation import permutation
from lit_pretrain.prepare.dedup.decide import REASONS, Removed
from lit_pretrain.prepare.document import Document

FILENAME = "duplicates.json"
_EXAMPLES = 10
"""Per reason: half of them the least similar pairs, where a threshold that is too low shows, half drawn at random."""
_EXCERPT = 300


def report(
    removed: Removed, sizes: npt.NDArray[np.int64], look_up: Callable[[set[int]], dict[int, tuple[str, Document]]]
) -> dict[str, Any]:
    """What was found, as JSON.

    Args:
        removed: The verdicts.
        sizes: UTF-8 bytes of every document of the corpus.
        look_up: For the examples.

    Returns:
        removed (documents and bytes by reason), clusters (size with the one that stays -> how many), examples.
    """
    chosen = np.concatenate([_choose(removed, code) for code in range(len(REASONS))])
    wanted = {int(number) for place in chosen for number in (removed.document[place], removed.kept[place])}
    found = look_up(wanted)
    examples = []
    for place in chosen.tolist():
        sides = {}
        for side, number in (("removed", int(removed.document[place])), ("kept", int(removed.kept[place]))):
            source, document = found[number]
            sides[side] = {"source": source, "origin": document.origin, "bytes": int(sizes[number]), "text": document.text[:_EXCERPT]}
        examples.append({"reason": REASONS[removed.reason[place]], "similarity": round(float(removed.similarity[place]), 4), **sides})
    clusters = Counter((np.unique(removed.kept, return_counts=True)[1] + 1).tolist())
    return {
        "removed": {
            reason: {
                "documents": int((removed.reason == code).sum()),
                "bytes": int(sizes[removed.document[removed.reason == code]].sum()),
            }
            for code, reason in enumerate(REASONS)
        },
        "clusters": {str(size): count for size, count in sorted(clusters.items())},
        "examples": examples,
    }


def _choose(removed: Removed, code: int) -> npt.NDArray[np.int64]:
    """Places of the examples of one reason."""
    places = np.flatnonzero(removed.reason == code)
    if len(places) <= _EXAMPLES:
        return places
    least = places[np.lexsort((places, removed.similarity[places]))][: _EXAMPLES // 2]
    rest = np.setdiff1d(places, least)
    drawn = rest[permutation(len(rest), "duplicates", REASONS[code])[: _EXAMPLES - len(least)]]
    return np.concatenate([least, np.sort(drawn)])
