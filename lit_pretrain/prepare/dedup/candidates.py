"""Candidates: the documents that an edge joins, in groups that can be decided independently."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.files import atomic_path
from lit_pretrain.hashing import splitmix64
from lit_pretrain.prepare.dedup.columns import Numbers, load_column, save_columns
from lit_pretrain.prepare.dedup.sketch import shingles
from lit_pretrain.prepare.document_store import Document

GROUP = 50_000
"""Candidates in a group, roughly; the documents of one component always stay together."""
BATCH_EDGES = 1 << 24
"""Edges joined at a time: about 140 bytes each, 2.3 GB."""
_FLAT = "shingles.u64"
_OPEN_FILES = 100
"""Parts whose shingles are mapped at a time: there may be more parts than files that a process may
open.
"""


def group_candidates(copies: Sequence[Path], edges: Sequence[Path], out: Path) -> int:
    """Find the connected components of all edges and distribute them over groups.

    Holds about 140 bytes for each candidate and for each edge of a batch; documents that resemble
    no other cost nothing.

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


def store_shingles(
    documents: Iterable[Document], begin: int, end: int, candidates: Path, out: Path, words: int
) -> int:
    """Write the shingles of those documents of a part that are compared by them.

    Args:
        documents: The documents of the part.
        begin: Number of its first document in the corpus.
        end: The one after its last.
        candidates: The directory that `group_candidates` wrote.
        out: A directory of arrays: documents [D] (the numbers of those documents), offsets [D + 1]
            (where the shingles of each begin), and a file of all shingles, flat, so that readers
            can map it.
        words: Words in a shingle.

    Returns:
        Number of such documents.
    """
    compared = load_column(candidates, "compared")
    here = slice(*np.searchsorted(compared, [begin, end]).tolist())
    mine = np.asarray(compared[here])
    wanted = set(mine.tolist())
    lengths = [0]
    with atomic_path(out) as scratch:
        scratch.mkdir()
        with (scratch / _FLAT).open("wb") as flat:
            for number, document in enumerate(documents if wanted else (), start=begin):
                if number in wanted:
                    hashes = shingles(document.text, words)
                    flat.write(hashes.tobytes())
                    lengths.append(len(hashes))
        np.save(scratch / "documents.npy", mine)
        np.save(scratch / "offsets.npy", np.cumsum(np.array(lengths, dtype=np.int64)))
    return len(mine)


class Shingles:
    """The shingles of some documents, mapped from the files of the parts.

    Only what is looked at is read.

    Args:
        paths: Files of `store_shingles`, of all parts.
        begins: Number of the first document of each part.
        documents: The documents, sorted; about 200 bytes each are held. Those without stored
            shingles are left out.
    """

    def __init__(self, paths: Sequence[Path], begins: Sequence[int], documents: Numbers) -> None:
        self._paths = paths
        self._of: dict[int, tuple[int, int, int]] = {}
        self._open: OrderedDict[int, npt.NDArray[np.uint64]] = OrderedDict()
        cuts = np.searchsorted(documents, [*begins, np.iinfo(np.int64).max])
        for part in np.flatnonzero(np.diff(cuts)).tolist():
            mine = documents[cuts[part] : cuts[part + 1]]
            stored = load_column(paths[part], "documents")
            offsets = load_column(paths[part], "offsets")
            places = np.searchsorted(stored, mine)
            there = places < len(stored)
            there[there] = stored[places[there]] == mine[there]
            places = places[there]
            for number, low, high in zip(
                mine[there].tolist(),
                offsets[places].tolist(),
                offsets[places + 1].tolist(),
                strict=True,
            ):
                self._of[number] = (part, low, high)

    def __getitem__(self, document: int) -> npt.NDArray[np.uint64]:
        """Return the sorted distinct shingles of a document."""
        part, begin, end = self._of[document]
        return np.asarray(self._flat(part)[begin:end])

    def size(self, document: int) -> int:
        """Count the shingles of a document."""
        _, begin, end = self._of[document]
        return end - begin

    def _flat(self, part: int) -> npt.NDArray[np.uint64]:
        """Map the shingles of a part."""
        if part not in self._open:
            path = self._paths[part] / _FLAT
            self._open[part] = (
                np.memmap(path, dtype=np.uint64, mode="r")
                if path.stat().st_size
                else np.empty(0, np.uint64)
            )
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(part)
        return self._open[part]


def count_shared(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> int:
    """Count the shingles that two sorted sets have in common."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not len(small):
        return 0
    place = np.searchsorted(large, small)
    place[place == len(large)] = 0
    return int(np.count_nonzero(large[place] == small))
