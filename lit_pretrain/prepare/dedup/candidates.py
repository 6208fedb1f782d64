"""Candidates: the documents that any bucket joins, cut into groups that can be decided alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.permutation import splitmix64
from lit_pretrain.prepare.dedup.buckets import Edges
from lit_pretrain.prepare.dedup.sketch import save, shingles
from lit_pretrain.prepare.document import Document

_GROUP = 50_000
"""Candidate documents of a group, about."""


def group(edges: Sequence[Path], out: Path) -> int:
    """Finds the connected components of all edges and deals them out to groups.

    Holds 16 bytes an edge: documents that nobody resembles cost nothing.

    Args:
        edges: Files of `buckets.bucket`.
        out: A .npz file. Arrays: document [C] (candidates, sorted), component [C] (the smallest document of each one's component),
            group [C].

    Returns:
        Number of groups; 0 when there are no candidates.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    joined: Edges = np.concatenate([np.empty((0, 2), np.int64), *(load_edges(path) for path in edges)])
    document, place = np.unique(joined, return_inverse=True)
    place = place.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(place), np.int8), (place[:, 0], place[:, 1])), shape=(len(document), len(document)))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)  # documents are sorted: the first of a label is its smallest
    component = document[first][label] if len(document) else document
    groups = -(-len(document) // _GROUP)
    dealt = (splitmix64(component.astype(np.uint64)) % np.uint64(max(1, groups))).astype(np.int64)
    save(out, {"document": document, "component": component, "group": dealt})
    return groups


def load_edges(path: Path) -> Edges:
    """The edges of a bucket task."""
    with np.load(path) as arrays:
        edges: Edges = arrays["edges"]
        return edges


def store_shingles(documents: Iterable[Document], begin: int, candidates: Path, out: Path, words: int) -> int:
    """Writes the shingles of the candidates of a part.

    Args:
        documents: The part.
        begin: Number of its first document in the corpus.
        candidates: The file of `group`.
        out: Path without suffix; three .npy files, so that readers can map them.
        words: Of a shingle.

    Returns:
        Number of candidates.
    """
    with np.load(candidates) as arrays:
        wanted = arrays["document"]
    found: list[int] = []
    lengths = [0]
    scratch = out.with_name(f".{out.name}.flat")
    out.parent.mkdir(parents=True, exist_ok=True)
    mine = set(wanted[np.searchsorted(wanted, begin) :].tolist()) if len(wanted) else set()
    with scratch.open("wb") as flat:
        for number, document in enumerate(documents, start=begin):
            if number in mine:
                hashes = shingles(document.text, words)
                flat.write(hashes.tobytes())
                found.append(number)
                lengths.append(len(hashes))
    np.save(f"{out}.documents.npy", np.array(found, dtype=np.int64))
    np.save(f"{out}.offsets.npy", np.cumsum(np.array(lengths, dtype=np.int64)))
    scratch.rename(f"{out}.flat")
    return len(found)


class Shingles:
    """The shingles of candidates, mapped from the files of all parts: only what is looked at is read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._of: dict[int, tuple[int, int, int]] = {}
        self._flat: list[npt.NDArray[np.uint64]] = []
        for part, path in enumerate(paths):
            documents, offsets = np.load(f"{path}.documents.npy"), np.load(f"{path}.offsets.npy")
            empty = not len(offsets) or not int(offsets[-1])
            self._flat.append(np.empty(0, np.uint64) if empty else np.memmap(f"{path}.flat", dtype=np.uint64, mode="r"))
            for number, begin, end in zip(documents.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                self._of[number] = (part, begin, end)

    def __getitem__(self, document: int) -> npt.NDArray[np.uint64]:
        """Sorted distinct shingles of a document."""
        part, begin, end = self._of[document]
        return self._flat[part][begin:end]


def shared(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> int:
    """Shingles that two sorted sets have in common."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not len(small):
        return 0
    place = np.searchsorted(large, small)
    place[place == len(large)] = 0
    return int(np.count_nonzero(large[place] == small))
