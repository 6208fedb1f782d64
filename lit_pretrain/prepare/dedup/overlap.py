"""Overlap: which documents may lie within which longer ones, from the sampled shingles that both hold.

A document with s sampled shingles, of which a share c lies in another one, shows c·s of them there give or take √(s·c·(1-c)): pairs are
taken from three such deviations below the threshold.

A phrase of everybody would make pairs of all with all. So of those that hold a shingle, the longest `HOLDERS` alone are paired with the
shorter ones, and for the rest it *counts as shared with everyone*: no pair is lost that shares one of the others, and a chapter that
stands in a thousand books is found in the longest of them. Longer means more distinct shingles; of equally long ones, the earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.prepare.dedup.arrays import in_range, load, save
from lit_pretrain.prepare.dedup.buckets import Copies, Numbers, save_edges

HOLDERS = 32
"""Documents with which one is paired over one shingle, at most."""
_SLAB = 1 << 20
"""Sampled shingles whose pairs are made at a time: at most HOLDERS · 24 bytes each, 0.8 GB, and far less where phrases are rare."""


def find_overlap(sketches: Sequence[Path], begins: Sequence[int], number: int, ranges: int, copies: Copies, out: Path) -> int:
    """Writes which documents share how many of the sampled shingles in a range.

    Args:
        sketches: Of all parts.
        begins: Number of the first document of each part.
        number: The range, 0 to ranges - 1.
        ranges: How many there are.
        copies: They are left out.
        out: A directory of arrays: small, large and hits [P] (shingles that `large` is known to share, of those with few holders),
            sorted by small; document and common [C] (shingles of a document that have too many holders), sorted by document.

    Returns:
        Number of pairs.
    """
    found, documents, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for path, begin in zip(sketches, begins, strict=True):
        keys = load(path, "sample_keys")
        here = in_range(keys, number, ranges)
        places = load(path, "sample_documents")[here].astype(np.int64)
        first = ~copies.among(places + begin)
        found.append(keys[here][first])
        documents.append(places[first] + begin)
        sizes.append(load(path, "distinct")[places[first]])
    values, owners = np.concatenate(found), np.concatenate(documents)
    order = np.lexsort((owners, -np.concatenate(sizes), values))
    values, owners = values[order], owners[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]]))
    lengths = np.diff(np.append(starts, len(values)))
    start = np.repeat(starts, lengths)
    place = np.arange(len(values)) - start  # among the holders of the shingle
    pairs = [np.empty((3, 0), np.int64)]
    later = np.flatnonzero(place > 0)
    for slab in range(0, len(later), _SLAB):
        pairs.append(_pairs(later[slab : slab + _SLAB], start, place, owners))
    small, large, hits = _added(np.concatenate(pairs, axis=1))
    document, common = np.unique(owners[place > HOLDERS], return_counts=True)
    save(out, {"small": small, "large": large, "hits": hits, "document": document, "common": common})
    return len(small)


def _pairs(entries: Numbers, start: Numbers, place: Numbers, owners: Numbers) -> Numbers:
    """(small, large, hits) [3, P] of some holders with the first ones of their shingles."""
    made = [np.empty((3, 0), np.int64)]
    for holder in range(HOLDERS):
        entries = entries[place[entries] > holder]
        if not len(entries):
            break
        made.append(np.stack([owners[entries], owners[start[entries] + holder], place[entries] <= HOLDERS]))
    return _added(np.concatenate(made, axis=1))


def _added(pairs: Numbers) -> Numbers:
    """The same with one column a pair, sorted by small and large, hits added up."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, pairs.shape[1]), bool), (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)]))
    hits = np.add.reduceat(pairs[2], begins) if len(begins) else pairs[2]
    return np.concatenate([pairs[:2, begins], hits[None]])


def find_containers(
    overlaps: Sequence[Path], sketches: Sequence[Path], begins: Sequence[int], low: int, high: int, threshold: float, out: Path
) -> int:
    """Writes the edges from documents to those that may lie within them, for the latter from `low` to below `high`.

    Holds about 100 bytes a pair.

    Args:
        overlaps: The files of `find_overlap` of all ranges.
        sketches: Of all parts.
        begins: Number of the first document of each part.
        low: First document.
        high: The one after the last.
        threshold: Of containment.
        out: A directory of arrays, as in `save_edges`.

    Returns:
        Number of edges.
    """
    sampled = np.zeros(high - low, dtype=np.int64)
    for path, begin in zip(sketches, begins, strict=True):
        if begin < high:
            mine = load(path, "sampled")[max(0, low - begin) : high - begin]
            if len(mine):
                sampled[max(0, begin - low) :][: len(mine)] = mine
    common = np.zeros(high - low, dtype=np.int64)
    pairs = [np.empty((3, 0), np.int64)]
    for path in overlaps:
        small = load(path, "small")
        here = slice(*np.searchsorted(small, [low, high]).tolist())
        pairs.append(np.stack([np.asarray(load(path, name)[here]) for name in ("small", "large", "hits")]))
        document = load(path, "document")
        here = slice(*np.searchsorted(document, [low, high]).tolist())
        common[np.asarray(document[here]) - low] += np.asarray(load(path, "common")[here])
    small, large, hits = _added(np.concatenate(pairs, axis=1))
    size = sampled[small - low]
    enough: npt.NDArray[np.bool_] = hits + common[small - low] >= size * threshold - 3 * np.sqrt(size * threshold * (1 - threshold))
    return save_edges(out, large[enough], small[enough])
