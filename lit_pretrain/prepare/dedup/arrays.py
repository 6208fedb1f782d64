"""Arrays: columns of numbers on disk, mapped when read, and cut by the range of a key so that a task holds one range of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.whole import whole

RANGE_KEYS = 1 << 24
"""Keys of a range: a task that sorts one holds about 50 bytes a key, 0.8 GB."""


def save(out: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Writes a directory with one .npy file an array, which appears whole or not at all."""
    with whole(out) as scratch:
        scratch.mkdir()
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)


def save_one(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Writes one array to a .npy file, which appears whole or not at all."""
    with whole(path) as scratch, scratch.open("wb") as file:
        np.save(file, array)


def load(path: Path, name: str) -> npt.NDArray[Any]:
    """One array of a directory, mapped: only what is looked at is read."""
    found: npt.NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode="r")
    return found


def ranges_for(keys: int) -> int:
    """How many ranges so many keys are cut into."""
    return max(1, -(-keys // RANGE_KEYS))


def in_range(keys: npt.NDArray[np.uint64], number: int, ranges: int) -> slice:
    """Where the keys of a range lie among sorted ones: ranges share out the 64-bit numbers evenly, as hashes do."""
    width = 2**64 // ranges
    begin = int(np.searchsorted(keys, np.uint64(number * width)))
    return slice(begin, len(keys) if number == ranges - 1 else int(np.searchsorted(keys, np.uint64((number + 1) * width))))
