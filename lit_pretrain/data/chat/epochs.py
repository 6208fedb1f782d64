"""Epochs: which rows each sample holds, a pure function of (row lengths, weights, seed, n).

An epoch takes every row of a source `weight` times, so once if the weight is 1. It shuffles the
rows, packs them (or leaves each alone), and shuffles the packs of all sources together. Nothing of
it depends on ranks or micro-batches.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_pretrain.hashing import permutation


def best_fit(
    lengths: npt.NDArray[np.int64], capacity: int, order: npt.NDArray[np.int64]
) -> list[list[int]]:
    """Pack rows by best-fit decreasing: the longest first, each into the fullest pack with room.

    Johnson 1973; for training Ding et al. 2024, "Fewer Truncations Improve Language Modeling".

    Args:
        lengths: Lengths of the rows, at most `capacity`.
        capacity: Size of a pack.
        order: The rows to pack, each as often as it is listed; rows of equal length keep this
            order.

    Returns:
        The packs, each with its rows in the order in which they were added.
    """
    sorted_rows: Sequence[int] = order[np.argsort(-lengths[order], kind="stable")].tolist()
    packs: list[list[int]] = []
    rooms: list[int] = []  # distinct free lengths, in rising order
    having: dict[int, list[int]] = {}  # free length -> packs with it, of which the last is taken
    for row in sorted_rows:
        length = int(lengths[row])
        assert 0 < length <= capacity, f"row {row} has {length} places of {capacity}"
        i = bisect_left(rooms, length)
        if i == len(rooms):
            pack, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[i]
            pack = having[room].pop()
            if not having[room]:
                del having[room], rooms[i]
        packs[pack].append(row)
        room -= length
        if room:
            if room not in having:
                having[room] = []
                insort(rooms, room)
            having[room].append(pack)
    return packs


@dataclass(frozen=True)
class SourceRows:
    """The training rows of one source."""

    name: str
    lengths: npt.NDArray[np.int64]
    """Tokens of a pack that each row takes."""
    weight: float = 1.0
    """How often an epoch takes each row. Below 1, successive epochs take successive parts."""


class Pack(NamedTuple):
    """The rows of one sample."""

    epoch: int
    source: int
    rows: tuple[int, ...]
    """Numbers of rows of the source, in their order within the sample."""


class Epochs:
    """The order of the samples.

    Args:
        sources: The sources; at least one has a row.
        capacity: Tokens of a pack; None makes each row a sample of its own.
        seed: Seed of the order.
    """

    def __init__(self, sources: Sequence[SourceRows], *, capacity: int | None, seed: int) -> None:
        self.sources = tuple(sources)
        self.capacity = capacity
        self.seed = seed
        self._ends: list[int] = []
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __call__(self, n: int) -> Pack:
        """Return the rows of sample n."""
        e = self.epoch_of(n)
        return self._epoch(e)[n - self.first(e)]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def epoch_of(self, n: int) -> int:
        """Return the epoch of sample n."""
        while not self._ends or self._ends[-1] <= n:
            self._grow()
        return bisect_right(self._ends, n)

    def first(self, epoch: int) -> int:
        """Return the number of the first sample of an epoch."""
        while len(self._ends) < epoch:
            self._grow()
        return self._ends[epoch - 1] if epoch else 0

    def in_epochs(self, n: int) -> float:
        """Convert the samples 0..n-1 to a number of epochs."""
        if n == 0:
            return 0.0
        e = self.epoch_of(n - 1)
        return e + (n - self.first(e)) / (self.first(e + 1) - self.first(e))

    def until(self, epochs: float) -> float:
        """Convert a number of epochs to samples; a partial epoch may give a fraction."""
        whole = floor(epochs)
        begin, end = self.first(whole), self.first(whole + 1)
        return begin + (epochs - whole) * (end - begin)

    def _grow(self) -> None:
        # The number of packs depends on the lengths alone, so it is the same for all epochs as long
        # as each takes the same rows.
        same = bool(self._ends) and all(
            float(source.weight).is_integer() for source in self.sources
        )
        count = self._ends[0] if same else len(self._epoch(len(self._ends)))
        self._ends.append((self._ends[-1] if self._ends else 0) + count)

    def _make_epoch(self, epoch: int) -> list[Pack]:
        packs: list[Pack] = []
        for s, source in enumerate(self.sources):
            rows = self._rows(source, epoch)
            groups = (
                [[int(row)] for row in rows]
                if self.capacity is None
                else best_fit(source.lengths, self.capacity, rows)
            )
            packs += [Pack(epoch, s, tuple(group)) for group in groups]
        return [packs[i] for i in permutation(len(packs), self.seed, "packs", epoch)]

    def _rows(self, source: SourceRows, epoch: int) -> npt.NDArray[np.int64]:
        """Return what an epoch takes of a source: a stretch of endless shuffled passes."""
        n = len(source.lengths)
        weight = Fraction(str(source.weight))  # exactly 0.3, not the nearest binary number
        begin, end = (epoch * weight * n).__floor__(), ((epoch + 1) * weight * n).__floor__()
        taken = []
        while begin < end:
            k, place = divmod(begin, n)
            upto = min(n, place + end - begin)
            taken.append(permutation(n, self.seed, "rows", source.name, k)[place:upto])
            begin += upto - place
        return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)
