"""Settle: the verdicts on groups, sorted by the parts whose documents they are about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_pretrain.prepare.dedup.arrays import load, save_one
from lit_pretrain.prepare.dedup.decide import REASONS
from lit_pretrain.prepare.dedup.places import Places

STRETCH = 1 << 24
"""Documents of consecutive parts that one task settles, about: 9 bytes for each that went, twice."""


def stretches(begins: Sequence[int], documents: int) -> list[list[int]]:
    """Consecutive parts, by number, that hold about `STRETCH` documents together."""
    found: list[list[int]] = []
    for part, end in enumerate([*begins[1:], documents]):
        if not found or end - begins[found[-1][0]] > STRETCH:
            found.append([])
        found[-1].append(part)
    return found


def settle(verdicts: Sequence[Path], places: Places, parts: Sequence[int], out: Sequence[Path]) -> list[dict[str, Any]]:
    """Writes which documents of some consecutive parts went.

    Args:
        verdicts: Of all groups: arrays of `decide.Removed`.
        places: Of the corpus.
        parts: By number.
        out: A .npy file for each: the numbers of documents that went, sorted.

    Returns:
        Of each part: part, documents and bytes (that are left), removed (by reason: documents, bytes).
    """
    low, high = places.span(parts[0])[0], places.span(parts[-1])[1]
    documents, reasons = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    for path in verdicts:
        column = load(path, "document")
        here = slice(*np.searchsorted(column, [low, high]).tolist())
        documents.append(np.asarray(column[here]))
        reasons.append(np.asarray(load(path, "reason")[here]))
    gone, reason = np.concatenate(documents), np.concatenate(reasons)
    order = np.argsort(gone)
    gone, reason = gone[order], reason[order]
    left = []
    for part, path in zip(parts, out, strict=True):
        begin, end = places.span(part)
        here = slice(*np.searchsorted(gone, [begin, end]).tolist())
        sizes = np.asarray(load(places.sketches[part], "bytes"))
        went = sizes[gone[here] - begin]
        removed = {}
        for code, name in enumerate(REASONS):
            mine = reason[here] == code
            if mine.any():
                removed[name] = {"documents": int(mine.sum()), "bytes": int(went[mine].sum())}
        save_one(path, gone[here])
        count = len(sizes) - len(went)
        left.append({"part": part, "documents": count, "bytes": int(sizes.sum()) - int(went.sum()), "removed": removed})
    return left
