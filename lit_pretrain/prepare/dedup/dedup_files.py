"""The files of the comparison: arrays of numbers on disk, and where each step leaves its own.

Arrays are mapped when they are read. Those that are sorted by a key are cut into ranges of the
keys, of which a task holds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.files import atomic_path
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig

Numbers = npt.NDArray[np.int64]
"""Numbers of documents: they are numbered through the whole corpus, in its order."""
RANGE_KEYS = 1 << 24
"""Keys in a range: a task that sorts one holds about 50 bytes a key, 0.8 GB."""


def save_columns(out: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write a directory with one .npy file per array; it appears whole or not at all."""
    with atomic_path(out) as scratch:
        scratch.mkdir()
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)


def save_column(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write one array to a .npy file, which appears whole or not at all."""
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        np.save(file, array)


def load_column(path: Path, name: str) -> npt.NDArray[Any]:
    """Map one array of a directory: only what is looked at is read."""
    found: npt.NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode="r")
    return found


def ranges_for(keys: int) -> int:
    """Count the ranges into which so many keys are cut."""
    return max(1, -(-keys // RANGE_KEYS))


def in_range(keys: npt.NDArray[np.uint64], number: int, ranges: int) -> slice:
    """Find the keys of a range among sorted ones.

    Ranges divide the 64-bit numbers evenly, as hashes are spread evenly over them.
    """
    width = 2**64 // ranges
    begin = int(np.searchsorted(keys, np.uint64(number * width)))
    if number == ranges - 1:
        return slice(begin, len(keys))
    return slice(begin, int(np.searchsorted(keys, np.uint64((number + 1) * width))))


@dataclass(frozen=True)
class EdgeFiles:
    """The files of all edges, by what joins the documents."""

    copies: Sequence[Path]
    """Files of `find_copies`, by range."""
    bands: Sequence[Sequence[Path]]
    """Files of `find_band`, by band and range."""
    containers: Sequence[Path]
    """Files of `find_containers`, by slice."""


@dataclass(frozen=True)
class Places:
    """The files of one corpus.

    Ranges are those of `in_range`: as many as the documents need.
    """

    config: DedupConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""
    documents: int
    """Documents in the corpus."""

    @property
    def ranges(self) -> int:
        """Count the ranges of a column with one key per document."""
        return ranges_for(self.documents)

    def span(self, part: int) -> tuple[int, int]:
        """Return the first document of a part and the one after its last."""
        return self.begins[part], (*self.begins, self.documents)[part + 1]

    def slice(self, number: int) -> tuple[int, int]:
        """Return the same for one of `ranges` even cuts of the corpus."""
        return self.documents * number // self.ranges, self.documents * (number + 1) // self.ranges

    @property
    def sketches(self) -> list[Path]:
        """Sketches, by part."""
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
        """List the files of pairs that share sampled shingles, by range of these."""
        return [self.work / f"overlap-{number:05d}" for number in range(ranges)]

    @property
    def containers(self) -> list[Path]:
        """Edges of containment, by slice."""
        return [
            self.work / f"containers-{number:05d}"
            for number in range(0 if self.config.containment is None else self.ranges)
        ]

    @property
    def edges(self) -> EdgeFiles:
        """All files of edges."""
        return EdgeFiles(self.copies, self.bands, self.containers)

    @property
    def candidates(self) -> Path:
        """Documents that any edge joins."""
        return self.work / "candidates"

    @property
    def shingles(self) -> list[Path]:
        """Shingles of the candidates, by part."""
        return [self.work / f"shingles-{part:05d}" for part in range(len(self.begins))]

    def verdicts(self, group: int) -> Path:
        """Return the file of the verdicts on a group."""
        return self.work / f"verdicts-{group:05d}"
