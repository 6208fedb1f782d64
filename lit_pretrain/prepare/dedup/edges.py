"""Edges: pairs of documents of which one may go for the other, and the groups that they form.

Documents are numbered through the whole corpus, in its order; an edge is two such numbers. A task
that finds edges looks at one range of the keys of one column, over all parts. It holds about 50
bytes a key, and one bit for each document of the corpus. The groups can then be decided
independently, by a true comparison (`decide`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.hashing import splitmix64
from lit_pretrain.prepare.dedup.dedup_files import Numbers, in_range, load_column, save_columns

HOLDERS = 32
"""Most documents with which one is paired over one shingle."""
_SLAB = 1 << 20
"""Sampled shingles that are paired at a time: at most HOLDERS · 24 bytes each, 0.8 GB, and far less
where phrases are rare.
"""
GROUP = 50_000
"""Candidates in a group, roughly; the documents of one component always stay together."""
BATCH_EDGES = 1 << 24
"""Edges joined at a time: about 140 bytes each, 2.3 GB."""


class Copies:
    """Which documents are copies of an earlier one, as one bit per document.

    Copies take part in no other comparison: a copy goes whenever the first of its text goes, and
    several copies would count as several documents.
    """

    def __init__(self, files: Sequence[Path], documents: int) -> None:
        self._bits = np.zeros(-(-documents // 8), dtype=np.uint8)
        for path in files:
            found = np.asarray(load_column(path, "document"))
            np.bitwise_or.at(self._bits, found >> 3, (1 << (found & 7)).astype(np.uint8))

    def __contains__(self, document: int) -> bool:
        return bool(self._bits[document >> 3] >> (document & 7) & 1)

    def mask(self, documents: Numbers) -> npt.NDArray[np.bool_]:
        """Tell for each document whether it is a copy."""
        bits: npt.NDArray[np.bool_] = (
            self._bits[documents >> 3] >> (documents & 7).astype(np.uint8) & 1
        ).astype(bool)
        return bits


def find_copies(
    sketches: Sequence[Path], begins: Sequence[int], number: int, ranges: int, out: Path
) -> int:
    """Write the copies whose hash lies in a range, each with the first document of the same text.

    Args:
        sketches: Sketches of all parts.
        begins: Number of the first document of each part.
        number: The range, 0 to ranges - 1.
        ranges: Number of ranges.
        out: A directory of arrays: first [E], document [E], sorted by document.

    Returns:
        Number of copies.
    """
    halves, documents = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for path, begin in zip(sketches, begins, strict=True):
        keys = load_column(path, "exact_keys")
        here = in_range(keys[:, 0], number, ranges)
        halves.append(np.asarray(keys[here]))
        documents.append(load_column(path, "exact_documents")[here].astype(np.int64) + begin)
    both, owners = np.concatenate(halves), np.concatenate(documents)
    order = np.lexsort((owners, both[:, 1], both[:, 0]))
    both, owners = both[order], owners[order]
    return save_edges(out, *_star((both[1:] != both[:-1]).any(axis=1), owners))


def find_band(
    sketches: Sequence[Path],
    begins: Sequence[int],
    band: int,
    number: int,
    ranges: int,
    copies: Copies,
    out: Path,
) -> int:
    """Write the edges of a range of one band: each document with the first that shares its key.

    Arguments and result are those of `find_copies`.
    """
    found, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for path, begin in zip(sketches, begins, strict=True):
        keys = load_column(path, "band_keys")[band]
        here = in_range(keys, number, ranges)
        # NO_KEY, which is 0, joins no documents.
        here = slice(max(here.start, int(np.searchsorted(keys, np.uint64(1)))), here.stop)
        owners = load_column(path, "band_documents")[band][here].astype(np.int64) + begin
        first = ~copies.mask(owners)
        found.append(keys[here][first])
        documents.append(owners[first])
    values, numbers = np.concatenate(found), np.concatenate(documents)
    order = np.lexsort((numbers, values))
    values, numbers = values[order], numbers[order]
    return save_edges(out, *_star(values[1:] != values[:-1], numbers))


def _star(differs: npt.NDArray[np.bool_], documents: Numbers) -> tuple[Numbers, Numbers]:
    """Join each document to the first of its run of equal keys.

    Args:
        differs: For every document but the first, whether its key differs from the one before.
        documents: The documents, sorted by key.
    """
    begins = np.concatenate([np.ones(min(1, len(documents)), bool), differs])
    first = documents[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first[~begins], documents[~begins]


def save_edges(out: Path, first: Numbers, document: Numbers) -> int:
    """Write edges, sorted by the document that may go."""
    order = np.lexsort((first, document))
    save_columns(out, {"first": first[order], "document": document[order]})
    return len(order)


def edges_of(path: Path, documents: Numbers) -> tuple[Numbers, Numbers]:
    """Read the edges by which any of some sorted documents may go, as (first, document).

    The file is mapped.
    """
    column = load_column(path, "document")
    low, high = (
        np.searchsorted(column, documents, "left"),
        np.searchsorted(column, documents, "right"),
    )
    counts = high - low
    places = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    return np.asarray(load_column(path, "first")[places]), np.repeat(documents, counts)


def find_overlap(
    sketches: Sequence[Path],
    begins: Sequence[int],
    number: int,
    ranges: int,
    copies: Copies,
    out: Path,
) -> int:
    """Write which documents share how many of the sampled shingles in a range.

    A phrase that occurs everywhere would pair all documents with all. So of the documents that hold
    a shingle, only the longest `HOLDERS` are paired with the shorter ones, and for the rest the
    shingle *counts as shared with every document*. Then no pair is lost that shares any other
    shingle, and a chapter that stands in a thousand books is found in the longest of them. Longer
    means more distinct shingles; of equally long documents, the earlier.

    Args:
        sketches: Sketches of all parts.
        begins: Number of the first document of each part.
        number: The range, 0 to ranges - 1.
        ranges: Number of ranges.
        copies: The copies, which are left out.
        out: A directory of arrays: small, large and hits [P] (shingles that `large` is known to
            share, of those with few holders), sorted by small; document and common [C] (shingles of
            a document that have too many holders), sorted by document.

    Returns:
        Number of pairs.
    """
    found, documents, sizes = (
        [np.empty(0, np.uint64)],
        [np.empty(0, np.int64)],
        [np.empty(0, np.int64)],
    )
    for path, begin in zip(sketches, begins, strict=True):
        keys = load_column(path, "sample_keys")
        here = in_range(keys, number, ranges)
        places = load_column(path, "sample_documents")[here].astype(np.int64)
        first = ~copies.mask(places + begin)
        found.append(keys[here][first])
        documents.append(places[first] + begin)
        sizes.append(load_column(path, "distinct")[places[first]])
    values, owners = np.concatenate(found), np.concatenate(documents)
    order = np.lexsort((owners, -np.concatenate(sizes), values))
    values, owners = values[order], owners[order]
    starts = np.flatnonzero(
        np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])
    )
    lengths = np.diff(np.append(starts, len(values)))
    start = np.repeat(starts, lengths)
    place = np.arange(len(values)) - start  # Rank among the holders of the shingle.
    pairs = [np.empty((3, 0), np.int64)]
    later = np.flatnonzero(place > 0)
    for slab in range(0, len(later), _SLAB):
        pairs.append(_holder_pairs(later[slab : slab + _SLAB], start, place, owners))
    small, large, hits = _sum_hits(np.concatenate(pairs, axis=1))
    document, common = np.unique(owners[place > HOLDERS], return_counts=True)
    save_columns(
        out, {"small": small, "large": large, "hits": hits, "document": document, "common": common}
    )
    return len(small)


def _holder_pairs(entries: Numbers, start: Numbers, place: Numbers, owners: Numbers) -> Numbers:
    """Pair some holders with the first ones of their shingles: (small, large, hits) [3, P]."""
    pairs = [np.empty((3, 0), np.int64)]
    for holder in range(HOLDERS):
        entries = entries[place[entries] > holder]
        if not len(entries):
            break
        pairs.append(
            np.stack([owners[entries], owners[start[entries] + holder], place[entries] <= HOLDERS])
        )
    return _sum_hits(np.concatenate(pairs, axis=1))


def _sum_hits(pairs: Numbers) -> Numbers:
    """Merge equal pairs and add up their hits; the result is sorted by small and large."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    begins = np.flatnonzero(
        np.concatenate(
            [np.ones(min(1, pairs.shape[1]), bool), (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)]
        )
    )
    hits = np.add.reduceat(pairs[2], begins) if len(begins) else pairs[2]
    return np.concatenate([pairs[:2, begins], hits[None]])


def find_containers(
    overlaps: Sequence[Path],
    sketches: Sequence[Path],
    begins: Sequence[int],
    low: int,
    high: int,
    threshold: float,
    out: Path,
) -> int:
    """Write the edges from documents to those that may lie within them, for some of the latter.

    Of a document with s sampled shingles, a share c of which lies in another one, c·s are found
    there, give or take √(s·c·(1-c)): a pair is kept down to three such deviations below the
    threshold. Holds about 100 bytes a pair.

    Args:
        overlaps: The files of `find_overlap`, of all ranges.
        sketches: Sketches of all parts.
        begins: Number of the first document of each part.
        low: The first document that may lie within another.
        high: The one after the last.
        threshold: Least share of its shingles that the other holds.
        out: A directory of arrays, as in `save_edges`.

    Returns:
        Number of edges.
    """
    sampled = np.zeros(high - low, dtype=np.int64)
    for path, begin in zip(sketches, begins, strict=True):
        if begin < high:
            mine = load_column(path, "sampled")[max(0, low - begin) : high - begin]
            if len(mine):
                sampled[max(0, begin - low) :][: len(mine)] = mine
    common = np.zeros(high - low, dtype=np.int64)
    pairs = [np.empty((3, 0), np.int64)]
    for path in overlaps:
        small = load_column(path, "small")
        here = slice(*np.searchsorted(small, [low, high]).tolist())
        pairs.append(
            np.stack(
                [np.asarray(load_column(path, name)[here]) for name in ("small", "large", "hits")]
            )
        )
        document = load_column(path, "document")
        here = slice(*np.searchsorted(document, [low, high]).tolist())
        common[np.asarray(document[here]) - low] += np.asarray(load_column(path, "common")[here])
    small, large, hits = _sum_hits(np.concatenate(pairs, axis=1))
    size = sampled[small - low]
    enough: npt.NDArray[np.bool_] = hits + common[small - low] >= size * threshold - 3 * np.sqrt(
        size * threshold * (1 - threshold)
    )
    return save_edges(out, large[enough], small[enough])


def group_candidates(copies: Sequence[Path], edges: Sequence[Path], out: Path) -> int:
    """Find the connected components of all edges and distribute them over groups.

    Holds about 140 bytes for each candidate and for each edge of a batch; documents without an edge
    cost nothing.

    Args:
        copies: Files of edges between exact copies.
        edges: Files of all other edges; the documents that they join are compared by shingles.
        out: A directory of arrays: compared [D] (documents that need shingles, sorted), document
            [C] (all candidates, by group, sorted within it), offsets [groups + 1] (where each
            group begins).

    Returns:
        Number of groups; 0 if there are no candidates.
    """
    joined = _join(np.empty((0, 2), np.int64), edges)
    compared = joined[:, 1]
    joined = _join(joined, copies)
    component, document = joined[:, 0], joined[:, 1]
    groups = -(-len(document) // GROUP)
    dealt = (splitmix64(component.astype(np.uint64)) % np.uint64(max(1, groups))).astype(np.int64)
    order = np.lexsort((document, dealt))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(dealt, minlength=groups))]).astype(
        np.int64
    )
    save_columns(out, {"compared": compared, "document": document[order], "offsets": offsets})
    return groups


def _join(known: Numbers, files: Sequence[Path]) -> Numbers:
    """Add the edges of some files to known components.

    Returns:
        [C, 2]: (smallest document of its component, document), sorted by document.
    """
    batch: list[Numbers] = [known]
    held = 0
    for path in files:
        first, document = load_column(path, "first"), load_column(path, "document")
        for begin in range(0, len(first), BATCH_EDGES):
            batch.append(
                np.stack(
                    [first[begin : begin + BATCH_EDGES], document[begin : begin + BATCH_EDGES]],
                    axis=1,
                )
            )
            held += len(batch[-1])
            if held >= BATCH_EDGES:
                batch, held = [_components(np.concatenate(batch))], 0
    return _components(np.concatenate(batch)) if len(batch) > 1 else batch[0]


def _components(edges: Numbers) -> Numbers:
    """Find the components of a graph, as edges from the smallest document of each to all of it."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    document, place = np.unique(edges, return_inverse=True)
    place = place.reshape(-1, 2)
    graph = coo_matrix(
        (np.ones(len(place), np.int8), (place[:, 0], place[:, 1])),
        shape=(len(document), len(document)),
    )
    _, label = connected_components(graph, directed=False)
    # Documents are sorted: the first of a label is its smallest.
    _, first = np.unique(label, return_index=True)
    return np.stack([document[first][label] if len(document) else document, document], axis=1)


def group_of(candidates: Path, number: int) -> Numbers:
    """Return the documents of a group, sorted."""
    begin, end = load_column(candidates, "offsets")[number : number + 2].tolist()
    found: Numbers = np.asarray(load_column(candidates, "document")[begin:end]).astype(np.int64)
    return found
