"""Decide: which candidates go, and for which document that stays.

Documents are taken in an order, and each is compared with those before it *that stay*, never with
what went: nobody is removed over a chain of others, no pair below a threshold is merged, what
everything went for is there in the end, and a second run finds nothing. The order is that of the
corpus, but a document in which others lie stands in front of the first of them: where a chapter
comes before its book, it is the book that the others are compared with. Of two that are nearly the
same neither lies in the other: the first one stays. A copy goes as the first of its text goes, for
the same reason and document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.prepare.dedup.candidates import Shingles, group_of, shared
from lit_pretrain.prepare.dedup.columns import (
    Numbers,
    edges_of,
    load_columns,
    ranges_for,
    save_column,
)
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig

REASONS = ("exact", "near", "contained")
"""Why a document was removed, by the code in the files."""
_ALIKE = -1
"""In place of a band: a document that looking for containers showed to be nearly the same."""


@dataclass(frozen=True)
class Removed:
    """What was removed, by document: arrays of one length."""

    document: npt.NDArray[np.int64]
    """Number in the corpus, rising."""
    kept: npt.NDArray[np.int64]
    """The document that stays for it."""
    reason: npt.NDArray[np.int8]
    """Index into REASONS."""
    similarity: npt.NDArray[np.float64]
    """Jaccard similarity, of a contained one the share of its shingles in the other."""


@dataclass(frozen=True)
class Edges:
    """The edge files of all ranges."""

    copies: Sequence[Path]
    """Of `find_copies`."""
    bands: Sequence[Sequence[Path]]
    """Of `find_band`, by band."""
    containers: Sequence[Path]
    """Of `find_containers`."""


def decide(
    candidates: Path,
    number: int,
    shingle_files: Sequence[Path],
    begins: Sequence[int],
    edges: Edges,
    config: DedupConfig,
) -> Removed:
    """Decides one group.

    Holds up to 4 kB a document of the group and 150 bytes a pair that containment may join; edges
    and shingles are mapped.

    Args:
        candidates: The file of `candidates.group`.
        number: The group.
        shingle_files: Of all parts, as given to `store_shingles`.
        begins: Number of the first document of each part.
        edges: What may go for what.
        config: What is compared.
    """
    mine = group_of(candidates, number)
    stored = Shingles(shingle_files, begins, mine)
    first_of = {document: first for path in edges.copies for first, document in _pairs(path, mine)}
    keys = _buckets(edges.bands, mine)
    containers, alike = _containers(edges.containers, mine, stored, config)
    removed: dict[int, tuple[int, int, float]] = {}
    by_key: dict[tuple[int, int], list[int]] = {}
    for document in _ordered(
        [document for document in mine.tolist() if document not in first_of], containers, stored
    ):
        buckets = keys.get(document, ())
        found = None
        if config.near is not None and (buckets or document in alike):
            others = sorted(
                {
                    other
                    for key in (*buckets, *alike.get(document, ()))
                    for other in by_key.get(key, ())
                }
            )
            found = _nearest(document, others, stored, config.near.threshold)
        found = found or _container(document, containers.get(document, {}), removed, stored, config)
        if found is not None:
            removed[document] = found
            continue
        for key in (*buckets, (_ALIKE, document)) if document in alike else buckets:
            by_key.setdefault(key, []).append(document)
    for document, first in first_of.items():
        removed[document] = removed.get(first, (first, 0, 1.0))
    documents = sorted(removed)
    return Removed(
        document=np.array(documents, dtype=np.int64),
        kept=np.array([removed[document][0] for document in documents], dtype=np.int64),
        reason=np.array([removed[document][1] for document in documents], dtype=np.int8),
        similarity=np.array([removed[document][2] for document in documents], dtype=np.float64),
    )


def _pairs(path: Path, documents: Numbers) -> list[tuple[int, int]]:
    """(first, document) of the edges of one file by which some documents may go."""
    first, document = edges_of(path, documents)
    return list(zip(first.tolist(), document.tolist(), strict=True))


def _buckets(
    bands: Sequence[Sequence[Path]], documents: Numbers
) -> dict[int, list[tuple[int, int]]]:
    """The buckets of each document that shares any: (band, first document of it)."""
    keys: dict[int, list[tuple[int, int]]] = {}
    for band, paths in enumerate(bands):
        for path in paths:
            firsts = set()
            for first, document in _pairs(path, documents):
                keys.setdefault(document, []).append((band, first))
                firsts.add(first)
            for first in firsts:
                keys.setdefault(first, []).append((band, first))
    return keys


def _containers(
    paths: Sequence[Path], documents: Numbers, stored: Shingles, config: DedupConfig
) -> tuple[dict[int, dict[int, float]], dict[int, list[tuple[int, int]]]]:
    """Of each document, those in which it truly lies and the share of it that does, the longest
    first; and the keys of those like it.
    """
    found: dict[int, dict[int, float]] = {}
    alike: dict[int, list[tuple[int, int]]] = {}
    if config.containment is not None:
        near = 2.0 if config.near is None else config.near.threshold
        for path in paths:
            for large, small in _pairs(path, documents):
                common, size, whole = (
                    shared(stored[small], stored[large]),
                    stored.size(small),
                    stored.size(large),
                )
                if common / (size + whole - common) >= near:
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
    """Of the shingles of a document, the share that another one holds."""
    return shared(stored[small], stored[large]) / stored.size(small)


def _ordered(
    documents: list[int], containers: dict[int, dict[int, float]], stored: Shingles
) -> list[int]:
    """The documents in the order in which they are decided: a container before what lies in it,
    else as in the corpus.
    """
    rank: dict[int, int] = {}
    for small in sorted(
        containers, key=lambda one: (stored.size(one), -one)
    ):  # what lies within it has its rank by then
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
    removed: dict[int, tuple[int, int, float]],
    stored: Shingles,
    config: DedupConfig,
) -> tuple[int, int, float] | None:
    """The longest document that stays and holds this one; else of those for which its
    containers went, the first that holds it.
    """
    for large, share in inside.items():
        if large not in removed:
            return large, 2, share
    for large in inside:
        instead = removed[large][0]
        if (stored.size(instead), -instead) > (stored.size(document), -document):
            assert config.containment is not None
            share = _share(document, instead, stored)
            if share >= config.containment.threshold:
                return instead, 2, share
    return None


def _nearest(
    document: int, others: Sequence[int], stored: Shingles, threshold: float
) -> tuple[int, int, float] | None:
    """The most similar of some others that stay, the earliest of equals; None below the
    threshold.
    """
    best: tuple[int, int, float] | None = None
    mine = stored[document]
    for other in others:
        size = stored.size(other)
        if min(len(mine), size) < threshold * max(len(mine), size):
            continue  # too different in size to reach it
        common = shared(mine, stored[other])
        similarity = common / (len(mine) + size - common)
        if similarity >= threshold and (best is None or similarity > best[2]):
            best = (other, 1, similarity)
    return best


# Places: where each step of the comparison leaves its files, and how the corpus is cut for it.


@dataclass(frozen=True)
class Places:
    """Of one corpus. Ranges are those of `arrays.in_range`: as many as the documents need."""

    config: DedupConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""
    documents: int
    """Of the corpus."""

    @property
    def ranges(self) -> int:
        """Of the keys of a column that has one a document."""
        return ranges_for(self.documents)

    def span(self, part: int) -> tuple[int, int]:
        """(first document, the one after the last) of a part."""
        return self.begins[part], (*self.begins, self.documents)[part + 1]

    def slice(self, number: int) -> tuple[int, int]:
        """The same of one of `ranges` even cuts of the corpus."""
        return self.documents * number // self.ranges, self.documents * (number + 1) // self.ranges

    @property
    def sketches(self) -> list[Path]:
        """Of all parts."""
        return [self.work / f"sketch-{part:05d}" for part in range(len(self.begins))]

    @property
    def copies(self) -> list[Path]:
        """Exact copies, by range."""
        return [
            self.work / f"copies-{number:05d}"
            for number in range(self.ranges if self.config.exact else 0)
        ]

    @property
    def bands(self) -> list[list[Path]]:
        """Edges of all bands, by range."""
        count = 0 if self.config.near is None else self.config.near.bands
        return [
            [self.work / f"band-{band}-{number:05d}" for number in range(self.ranges)]
            for band in range(count)
        ]

    def overlaps(self, ranges: int) -> list[Path]:
        """Pairs that share sampled shingles, by range of these."""
        return [self.work / f"overlap-{number:05d}" for number in range(ranges)]

    @property
    def containers(self) -> list[Path]:
        """Edges of containment, by slice."""
        return [
            self.work / f"containers-{number:05d}"
            for number in range(0 if self.config.containment is None else self.ranges)
        ]

    @property
    def edges(self) -> Edges:
        """All of them."""
        return Edges(self.copies, self.bands, self.containers)

    @property
    def candidates(self) -> Path:
        """Documents that any edge joins."""
        return self.work / "candidates"

    @property
    def shingles(self) -> list[Path]:
        """Of the candidates of all parts."""
        return [self.work / f"shingles-{part:05d}" for part in range(len(self.begins))]

    def verdicts(self, group: int) -> Path:
        """On a group."""
        return self.work / f"verdicts-{group:05d}"


# Settle: the verdicts on groups, sorted by the parts whose documents they are about.


STRETCH = 1 << 24
"""Documents of consecutive parts that one task settles, about: 9 bytes for each that went,
twice.
"""


def stretches(begins: Sequence[int], documents: int) -> list[list[int]]:
    """Consecutive parts, by number, that hold about `STRETCH` documents together."""
    found: list[list[int]] = []
    for part, end in enumerate([*begins[1:], documents]):
        if not found or end - begins[found[-1][0]] > STRETCH:
            found.append([])
        found[-1].append(part)
    return found


def settle(
    verdicts: Sequence[Path], places: Places, parts: Sequence[int], out: Sequence[Path]
) -> list[dict[str, Any]]:
    """Writes which documents of some consecutive parts went.

    Args:
        verdicts: Of all groups: arrays of `decide.Removed`.
        places: Of the corpus.
        parts: By number.
        out: A .npy file for each: the numbers of documents that went, sorted.

    Returns:
        Of each part: part, documents and bytes (that are left), removed (by reason: documents,
        bytes).
    """
    low, high = places.span(parts[0])[0], places.span(parts[-1])[1]
    documents, reasons = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    for path in verdicts:
        column = load_columns(path, "document")
        here = slice(*np.searchsorted(column, [low, high]).tolist())
        documents.append(np.asarray(column[here]))
        reasons.append(np.asarray(load_columns(path, "reason")[here]))
    gone, reason = np.concatenate(documents), np.concatenate(reasons)
    order = np.argsort(gone)
    gone, reason = gone[order], reason[order]
    left = []
    for part, path in zip(parts, out, strict=True):
        begin, end = places.span(part)
        here = slice(*np.searchsorted(gone, [begin, end]).tolist())
        sizes = np.asarray(load_columns(places.sketches[part], "bytes"))
        went = sizes[gone[here] - begin]
        removed = {}
        for code, name in enumerate(REASONS):
            mine = reason[here] == code
            if mine.any():
                removed[name] = {"documents": int(mine.sum()), "bytes": int(went[mine].sum())}
        save_column(path, gone[here])
        count = len(sizes) - len(went)
        left.append(
            {
                "part": part,
                "documents": count,
                "bytes": int(sizes.sum()) - int(went.sum()),
                "removed": removed,
            }
        )
    return left
