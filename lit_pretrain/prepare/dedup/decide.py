"""Decide: which candidates go, and for which document that stays.

Documents are taken in an order, and each is compared only with earlier ones *that stay*, never with
one that went. So no document is removed through a chain of others, no pair below a threshold is
merged, the document for which another one went is still there at the end, and a second run finds
nothing. The order is that of the corpus, except that a document that contains others comes before
the first of them: where a chapter precedes its book, the others are compared with the book. Two
documents that are nearly the same do not contain each other; the first one stays. A copy goes
whenever the first of its text goes, for the same reason and document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from lit_pretrain.hashing import splitmix64
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.dedup.dedup_files import (
    EdgeFiles,
    Numbers,
    Places,
    load_column,
    save_column,
)
from lit_pretrain.prepare.dedup.edges import edges_of, group_of
from lit_pretrain.prepare.dedup.sketch import Shingles, count_shared

REASONS = ("exact", "near", "contained")
"""Why a document was removed, by the code in the files."""
_EXACT, _NEAR, _CONTAINED = range(len(REASONS))
_ALIKE = -1
"""In place of a band: the search for containers showed that documents are nearly the same."""
_Bucket = tuple[int, int]
"""Band, and first document, of documents that may be nearly the same."""


DuplicateExample = tuple[int, float, int, int]
"""(reason, similarity, removed, kept)"""


class _Removal(NamedTuple):
    """Why a document goes."""

    kept: int
    """The document that stays for it."""
    reason: int
    """Index into REASONS."""
    similarity: float


@dataclass(frozen=True)
class Removed:
    """The documents that were removed, as arrays of one length."""

    document: npt.NDArray[np.int64]
    """Number in the corpus, ascending."""
    kept: npt.NDArray[np.int64]
    """The document that stays for it."""
    reason: npt.NDArray[np.int8]
    """Index into REASONS."""
    similarity: npt.NDArray[np.float64]
    """Jaccard similarity; of a contained document, the share of its shingles in the other."""


def decide(
    candidates: Path,
    number: int,
    shingle_files: Sequence[Path],
    begins: Sequence[int],
    edges: EdgeFiles,
    config: DedupConfig,
) -> Removed:
    """Decide which documents of one group go.

    Holds up to 4 kB for each document of the group, and 150 bytes a pair that containment may join;
    edges and shingles are mapped.

    Args:
        candidates: The directory that `group_candidates` wrote.
        number: The group.
        shingle_files: Files of `store_shingles`, of all parts.
        begins: Number of the first document of each part.
        edges: Which document may go for which.
        config: What is compared.
    """
    mine = group_of(candidates, number)
    stored = Shingles(shingle_files, begins, mine)
    first_of = {
        document: first for path in edges.copies for first, document in _edge_pairs(path, mine)
    }
    buckets_of = _buckets(edges.bands, mine)
    containers, alike = _containers(edges.containers, mine, stored, config)
    removed: dict[int, _Removal] = {}
    kept_in: dict[_Bucket, list[int]] = {}
    for document in _ordered(
        [document for document in mine.tolist() if document not in first_of], containers, stored
    ):
        buckets = buckets_of.get(document, ())
        found = None
        if config.near is not None and (buckets or document in alike):
            others = sorted(
                {
                    other
                    for key in (*buckets, *alike.get(document, ()))
                    for other in kept_in.get(key, ())
                }
            )
            found = _nearest(document, others, stored, config.near.threshold)
        found = found or _container(document, containers.get(document, {}), removed, stored, config)
        if found is not None:
            removed[document] = found
            continue
        for key in (*buckets, (_ALIKE, document)) if document in alike else buckets:
            kept_in.setdefault(key, []).append(document)
    for document, first in first_of.items():
        removed[document] = removed.get(first, _Removal(first, _EXACT, 1.0))
    documents = sorted(removed)
    return Removed(
        document=np.array(documents, dtype=np.int64),
        kept=np.array([removed[document].kept for document in documents], dtype=np.int64),
        reason=np.array([removed[document].reason for document in documents], dtype=np.int8),
        similarity=np.array(
            [removed[document].similarity for document in documents], dtype=np.float64
        ),
    )


def _edge_pairs(path: Path, documents: Numbers) -> list[tuple[int, int]]:
    """Read the edges of one file by which some documents may go, as (first, document)."""
    first, document = edges_of(path, documents)
    return list(zip(first.tolist(), document.tolist(), strict=True))


def _buckets(bands: Sequence[Sequence[Path]], documents: Numbers) -> dict[int, list[_Bucket]]:
    """Find the buckets of each document that shares one with others."""
    keys: dict[int, list[_Bucket]] = {}
    for band, paths in enumerate(bands):
        for path in paths:
            firsts = set()
            for first, document in _edge_pairs(path, documents):
                keys.setdefault(document, []).append((band, first))
                firsts.add(first)
            for first in firsts:
                keys.setdefault(first, []).append((band, first))
    return keys


def _containers(
    paths: Sequence[Path], documents: Numbers, stored: Shingles, config: DedupConfig
) -> tuple[dict[int, dict[int, float]], dict[int, list[_Bucket]]]:
    """Compare the pairs that containment may join.

    Returns:
        Document -> those in which it truly lies, the longest first, with the share of it that does;
        and document -> a bucket for each other one that turned out to be nearly the same.
    """
    found: dict[int, dict[int, float]] = {}
    alike: dict[int, list[_Bucket]] = {}
    if config.containment is not None:
        # Without near-duplicates, no similarity reaches the threshold.
        near = math.inf if config.near is None else config.near.threshold
        for path in paths:
            for large, small in _edge_pairs(path, documents):
                common = count_shared(stored[small], stored[large])
                size = stored.size(small)
                if common / (size + stored.size(large) - common) >= near:
                    alike.setdefault(small, []).append((_ALIKE, large))
                    alike.setdefault(large, []).append((_ALIKE, small))
                elif common / size >= config.containment.threshold:
                    found.setdefault(small, {})[large] = common / size
    ordered = {
        small: dict(sorted(inside.items(), key=lambda one: (-stored.size(one[0]), one[0])))
        for small, inside in found.items()
    }
    return ordered, alike


def _share(small: int, large: int, stored: Shingles) -> float:
    """Compute the share of a document's shingles that another one holds."""
    return count_shared(stored[small], stored[large]) / stored.size(small)


def _ordered(
    documents: list[int], containers: dict[int, dict[int, float]], stored: Shingles
) -> list[int]:
    """Put the documents into the order in which they are decided.

    A container comes before what lies in it; else the order is that of the corpus.
    """
    rank: dict[int, int] = {}
    # From small to large, so that whatever lies within a document has its rank before it.
    for small in sorted(containers, key=lambda one: (stored.size(one), -one)):
        for large in containers[small]:
            rank[large] = min(rank.get(large, large), rank.get(small, small))

    def place(document: int) -> tuple[int, int, int]:
        # Only documents that containment joins share a rank, and they have shingles.
        known = document in rank or document in containers
        return rank.get(document, document), -stored.size(document) if known else 0, document

    return sorted(documents, key=place)


def _container(
    document: int,
    inside: dict[int, float],
    removed: dict[int, _Removal],
    stored: Shingles,
    config: DedupConfig,
) -> _Removal | None:
    """Find the longest document that stays and holds this one.

    If all its containers went, it is the first document that they went for and that holds it.
    """
    for large, share in inside.items():
        if large not in removed:
            return _Removal(large, _CONTAINED, share)
    for large in inside:
        instead = removed[large].kept
        if (stored.size(instead), -instead) > (stored.size(document), -document):
            assert config.containment is not None
            share = _share(document, instead, stored)
            if share >= config.containment.threshold:
                return _Removal(instead, _CONTAINED, share)
    return None


def _nearest(
    document: int, others: Sequence[int], stored: Shingles, threshold: float
) -> _Removal | None:
    """Find the most similar of some documents that stay, the earliest of equals.

    Return None if none reaches the threshold.
    """
    best: _Removal | None = None
    mine = stored[document]
    for other in others:
        size = stored.size(other)
        if min(len(mine), size) < threshold * max(len(mine), size):
            continue  # Too different in size to reach it.
        common = count_shared(mine, stored[other])
        similarity = common / (len(mine) + size - common)
        if similarity >= threshold and (best is None or similarity > best.similarity):
            best = _Removal(other, _NEAR, similarity)
    return best


# What is left of each part, by the decisions about all groups.

STRETCH = 1 << 24
"""Documents, roughly, of the consecutive parts that one task settles. It holds 25 bytes for each
document that went, twice.
"""


def stretches(begins: Sequence[int], documents: int) -> list[list[int]]:
    """Cut the parts into stretches of about `STRETCH` documents, as lists of part numbers."""
    found: list[list[int]] = []
    for part, end in enumerate([*begins[1:], documents]):
        if not found or end - begins[found[-1][0]] > STRETCH:
            found.append([])
        found[-1].append(part)
    return found


class RemovedCounts(TypedDict):
    """How much one reason removed."""

    documents: int
    bytes: int


class SettledPart(TypedDict):
    """What is left of a part, and what was removed from it."""

    part: int
    """Number of the part."""
    documents: int
    """Documents that are left."""
    bytes: int
    """UTF-8 bytes of their text."""
    removed: dict[str, RemovedCounts]
    """Reason -> what it removed."""
    rejects: list[DuplicateExample]
    """Of each reason, a random few."""


def settle(
    verdicts: Sequence[Path],
    places: Places,
    parts: Sequence[int],
    out: Sequence[Path],
    keep_rejects: int,
) -> list[SettledPart]:
    """Write which documents of some consecutive parts went.

    Args:
        verdicts: Directories with the arrays of `Removed`, of all groups.
        places: Where the files of the corpus are.
        parts: Numbers of the parts.
        out: A .npy file for each part: the numbers of the documents that went, sorted.
        keep_rejects: How many to choose of each part and reason, for a person to read.
    """
    low, high = places.span(parts[0])[0], places.span(parts[-1])[1]
    documents, reasons = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    kept, similarities = [np.empty(0, np.int64)], [np.empty(0, np.float64)]
    for path in verdicts:
        column = load_column(path, "document")
        here = slice(*np.searchsorted(column, [low, high]).tolist())
        documents.append(np.asarray(column[here]))
        reasons.append(np.asarray(load_column(path, "reason")[here]))
        kept.append(np.asarray(load_column(path, "kept")[here]))
        similarities.append(np.asarray(load_column(path, "similarity")[here]))
    gone, reason = np.concatenate(documents), np.concatenate(reasons)
    order = np.argsort(gone)
    gone, reason = gone[order], reason[order]
    first, similarity = np.concatenate(kept)[order], np.concatenate(similarities)[order]
    left = []
    for part, path in zip(parts, out, strict=True):
        begin, end = places.span(part)
        here = slice(*np.searchsorted(gone, [begin, end]).tolist())
        sizes = np.asarray(load_column(places.sketches[part], "bytes"))
        went = sizes[gone[here] - begin]
        removed: dict[str, RemovedCounts] = {}
        rejects: list[DuplicateExample] = []
        for code, name in enumerate(REASONS):
            mine = reason[here] == code
            chosen = here.start + np.flatnonzero(mine)
            for place in chosen[np.argsort(at_random(gone[chosen]))[:keep_rejects]].tolist():
                rejects.append(
                    (code, float(similarity[place]), int(gone[place]), int(first[place]))
                )
            if mine.any():
                removed[name] = RemovedCounts(
                    documents=int(mine.sum()), bytes=int(went[mine].sum())
                )
        save_column(path, gone[here])
        left.append(
            SettledPart(
                part=part,
                documents=len(sizes) - len(went),
                bytes=int(sizes.sum()) - int(went.sum()),
                removed=removed,
                rejects=rejects,
            )
        )
    return left


def at_random(documents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Hash the numbers of documents: their order by it is one at random."""
    return splitmix64(documents.astype(np.uint64))
