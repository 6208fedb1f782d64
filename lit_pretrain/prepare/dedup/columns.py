"""Arrays: columns of numbers on disk, mapped when read, and cut by the range of a key so that a
task holds one range of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.files import atomic_path
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig

RANGE_KEYS = 1 << 24
"""Keys of a range: a task that sorts one holds about 50 bytes a key, 0.8 GB."""


def save_columns(out: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Writes a directory with one .npy file an array, which appears whole or not at all."""
    with atomic_path(out) as scratch:
        scratch.mkdir()
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)


def save_column(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Writes one array to a .npy file, which appears whole or not at all."""
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        np.save(file, array)


def load_columns(path: Path, name: str) -> npt.NDArray[Any]:
    """One array of a directory, mapped: only what is looked at is read."""
    found: npt.NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode="r")
    return found


def ranges_for(keys: int) -> int:
    """How many ranges so many keys are cut into."""
    return max(1, -(-keys // RANGE_KEYS))


def in_range(keys: npt.NDArray[np.uint64], number: int, ranges: int) -> slice:
    """Where the keys of a range lie among sorted ones: ranges share out the 64-bit numbers
    evenly, as hashes do.
    """
    width = 2**64 // ranges
    begin = int(np.searchsorted(keys, np.uint64(number * width)))
    return slice(
        begin,
        len(keys)
        if number == ranges - 1
        else int(np.searchsorted(keys, np.uint64((number + 1) * width))),
    )


# Buckets: documents that share a key, as edges of a graph of candidates.
#
# Documents are numbered through the whole corpus, in its order: an edge is two such numbers. A task
# looks at one range of the keys of one column, over all parts; it holds about 50 bytes a key and
# one bit a document of the corpus.


Numbers = npt.NDArray[np.int64]
"""Numbers of documents."""


def columns(config: DedupConfig) -> list[int | None]:
    """What documents may share beside their text: bands by number, None for the sampled
    shingles.
    """
    return [
        *(range(config.near.bands) if config.near is not None else ()),
        *([None] if config.containment is not None else []),
    ]


class Copies:
    """Which documents are copies of an earlier one: one bit a document.

    They are left out of every other comparison, for they go as their first one goes, and would be
    counted as many where one is meant.
    """

    def __init__(self, files: Sequence[Path], documents: int) -> None:
        self._bits = np.zeros(-(-documents // 8), dtype=np.uint8)
        for path in files:
            found = np.asarray(load_columns(path, "document"))
            np.bitwise_or.at(self._bits, found >> 3, (1 << (found & 7)).astype(np.uint8))

    def __contains__(self, document: int) -> bool:
        return bool(self._bits[document >> 3] >> (document & 7) & 1)

    def among(self, documents: Numbers) -> npt.NDArray[np.bool_]:
        """Whether each is one."""
        bits: npt.NDArray[np.bool_] = (
            self._bits[documents >> 3] >> (documents & 7).astype(np.uint8) & 1
        ).astype(bool)
        return bits


def find_copies(
    sketches: Sequence[Path], begins: Sequence[int], number: int, ranges: int, out: Path
) -> int:
    """Writes the copies whose hash begins in a range: each with the first of the same text.

    Args:
        sketches: Of all parts.
        begins: Number of the first document of each part.
        number: The range, 0 to ranges - 1.
        ranges: How many there are.
        out: A directory of arrays: first [E], document [E], sorted by document.

    Returns:
        Number of copies.
    """
    halves, documents = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for path, begin in zip(sketches, begins, strict=True):
        keys = load_columns(path, "exact_keys")
        here = in_range(keys[:, 0], number, ranges)
        halves.append(np.asarray(keys[here]))
        documents.append(load_columns(path, "exact_documents")[here].astype(np.int64) + begin)
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
    """Writes the edges of a range of one band: each document with the first that shares its
    key; as `find_copies`.
    """
    found, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for path, begin in zip(sketches, begins, strict=True):
        keys = load_columns(path, "band_keys")[band]
        here = in_range(keys, number, ranges)
        here = slice(
            max(here.start, int(np.searchsorted(keys, np.uint64(1)))), here.stop
        )  # not NO_KEY
        owners = load_columns(path, "band_documents")[band][here].astype(np.int64) + begin
        first = ~copies.among(owners)
        found.append(keys[here][first])
        documents.append(owners[first])
    values, numbers = np.concatenate(found), np.concatenate(documents)
    order = np.lexsort((numbers, values))
    values, numbers = values[order], numbers[order]
    return save_edges(out, *_star(values[1:] != values[:-1], numbers))


def _star(differs: npt.NDArray[np.bool_], documents: Numbers) -> tuple[Numbers, Numbers]:
    """An edge from each document to the first of its run; `differs` says where, after the first
    document, runs begin.
    """
    begins = np.concatenate([np.ones(min(1, len(documents)), bool), differs])
    first = documents[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first[~begins], documents[~begins]


def save_edges(out: Path, first: Numbers, document: Numbers) -> int:
    """Writes edges, sorted by the document that may go."""
    order = np.lexsort((first, document))
    save_columns(out, {"first": first[order], "document": document[order]})
    return len(order)


def edges_of(path: Path, documents: Numbers) -> tuple[Numbers, Numbers]:
    """(first, document) of the edges by which any of some sorted documents may go; the file is
    mapped.
    """
    column = load_columns(path, "document")
    low, high = (
        np.searchsorted(column, documents, "left"),
        np.searchsorted(column, documents, "right"),
    )
    counts = high - low
    places = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    return np.asarray(load_columns(path, "first")[places]), np.repeat(documents, counts)
