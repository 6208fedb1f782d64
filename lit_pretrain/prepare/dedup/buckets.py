"""Buckets: documents that share a key, as edges of a graph of candidates.

Documents are numbered through the whole corpus, in its order: an edge is two such numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.dedup.sketch import NO_KEY, save

Edges = npt.NDArray[np.int64]
"""[edges, 2], the earlier document first."""
_COMMON = 50
"""A sampled shingle in more documents than this is a phrase of everybody, and says nothing about containment."""


def columns(config: DedupConfig) -> list[str]:
    """What documents may share: each is a bucket task of its own."""
    bands = [f"band-{band}" for band in range(config.near.bands)] if config.near is not None else []
    return [*(["exact"] if config.exact else []), *bands, *(["sample"] if config.containment is not None else [])]


def bucket(sketches: Sequence[Path], column: str, out: Path, config: DedupConfig) -> int:
    """Writes the edges of one column over all parts: each document with the first that shares its key.

    Holds the column: 16 bytes a document for a band, 32 for the exact hash, 16 a sampled shingle.

    Returns:
        Number of edges.
    """
    if column == "exact":
        edges = _exact(sketches)
    elif column == "sample":
        assert config.containment is not None
        edges = _sample(sketches, config.containment.threshold)
    else:
        keys = np.concatenate([_load(path, column) for path in sketches])
        edges = star(keys, np.arange(len(keys)), keys != NO_KEY)
    save(out, {"edges": edges})
    return len(edges)


def star(keys: npt.NDArray[np.uint64], documents: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]) -> Edges:
    """An edge from each document to the first one with the same key."""
    keys, documents = keys[valid], documents[valid]
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order]
    begins = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, bool)
    first = documents[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(keys) else documents
    edges: Edges = np.stack([first, documents], axis=1)
    return np.compress(first != documents, edges, axis=0)


def _exact(sketches: Sequence[Path]) -> Edges:
    """Both halves of the hash must agree."""
    halves = np.concatenate([_load(path, "exact") for path in sketches])
    order = np.lexsort((np.arange(len(halves)), halves[:, 1], halves[:, 0]))
    same = np.concatenate([[False], (halves[order][1:] == halves[order][:-1]).all(axis=1)]) if len(halves) else np.empty(0, bool)
    first = order[np.flatnonzero(~same)][np.cumsum(~same) - 1] if len(halves) else order
    edges: Edges = np.stack([first, order], axis=1)
    return np.compress(first != order, edges, axis=0)


def _sample(sketches: Sequence[Path], threshold: float) -> Edges:
    """(container, contained) wherever the sample makes containment likely.

    A document with s sampled shingles, of which a share c lies in another one, shows c·s of them there give or take √(s·c·(1-c)): pairs
    are taken from three such deviations below the threshold.
    """
    keys = np.concatenate([_load(path, "sample") for path in sketches])
    begin, owners = 0, []
    distinct = np.concatenate([_load(path, "distinct") for path in sketches])
    for path in sketches:
        owners.append(_load(path, "sample_document") + begin)
        begin += len(_load(path, "distinct"))
    documents = np.concatenate(owners)
    sampled = np.bincount(documents, minlength=len(distinct))
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order]
    ends = np.flatnonzero(np.concatenate([keys[1:] != keys[:-1], [True]])) + 1 if len(keys) else np.empty(0, np.int64)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    shared: dict[tuple[int, int], int] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if not 2 <= end - start <= _COMMON:
            continue
        group = documents[start:end].tolist()
        for i, one in enumerate(group):
            for other in group[i + 1 :]:
                shared[one, other] = shared.get((one, other), 0) + 1
    edges = []
    for (one, other), count in shared.items():
        small, large = (other, one) if (distinct[one], -one) > (distinct[other], -other) else (one, other)
        size = int(sampled[small])
        least = size * threshold - 3 * (size * threshold * (1 - threshold)) ** 0.5
        if count >= max(1.0, least):
            edges.append((large, small))
    return np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)


def _load(path: Path, name: str) -> npt.NDArray[np.generic]:
    """One array of a sketch file."""
    with np.load(path) as arrays:
        found: npt.NDArray[np.generic] = arrays[name]
        return found
