"""Columns: arrays of numbers on disk, mapped when read and cut into ranges of their keys.

A task holds one range of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.files import atomic_path

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
