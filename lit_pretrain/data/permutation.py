"""Permutation: a shuffle that outlives library versions, a sort of SplitMix64 hashes and not a library's generator."""

import hashlib

import numpy as np
import numpy.typing as npt

_UINT64 = np.uint64


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit integers (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", fig. 16)."""
    with np.errstate(over="ignore"):
        z = x + _UINT64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> _UINT64(30))) * _UINT64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> _UINT64(27))) * _UINT64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = z ^ (z >> _UINT64(31))
        return mixed


def permutation(n: int, *key: int | str) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on nothing but n and the key."""
    digest = hashlib.sha256("\x00".join(map(str, key)).encode()).digest()
    word = np.frombuffer(digest[:8], dtype="<u8").astype(_UINT64)
    return np.argsort(splitmix64(splitmix64(np.arange(n, dtype=_UINT64)) ^ word), kind="stable").astype(np.int64)
