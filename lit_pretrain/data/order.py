"""Order: global sample number n -> (source, epoch, block), a pure function of (blocks, weights, seed, n).

Nothing is remembered between calls, so a checkpoint stores one integer, prefetching cannot matter, and any step can be
traced to its documents. Three levels:

1. Cycles of `cycle` samples. Every cycle holds exactly `quota[s]` samples of source s, in a shuffled order of its own.
2. Epochs. The i-th sample of a source lies in its epoch i // blocks; every epoch holds every block once, reshuffled.
3. Groups. An epoch visits the source's chunks in shuffled order, `shuffle_chunks` at a time, and shuffles blocks only
   within such a group: a remote reader downloads each chunk once per epoch, in sequence.

Permutations are sorts of SplitMix64 hashes and not a library's generator: the order must outlive library versions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError

_UINT64 = np.uint64


class Sample(NamedTuple):
    """Where one sample comes from."""

    source: int
    """Index into the order's sources."""
    epoch: int
    """How often the source had been read completely before."""
    block: int
    """Number of the block (row) within the source, in stored order."""


@dataclass(frozen=True)
class SourceBlocks:
    """One source of the mixture: its name and how many blocks each of its chunks holds, in stored order."""

    name: str
    chunk_blocks: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Blocks of the whole source."""
        return sum(self.chunk_blocks)


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


def quotas_of(weights: Sequence[float], cycle: int) -> tuple[int, ...]:
    """Integers that sum to `cycle`, in proportion to the weights (largest remainder; ties go to the earlier source)."""
    total = float(sum(weights))
    exact = [w / total * cycle for w in weights]
    quotas = [int(x) for x in exact]
    by_remainder = sorted(range(len(weights)), key=lambda s: (quotas[s] - exact[s], s))
    for s in by_remainder[: cycle - sum(quotas)]:
        quotas[s] += 1
    return tuple(quotas)


class Order:
    """The data order of a run.

    Args:
        sources: The sources that the data holds.
        weights: Share of the samples by source name, normalised here; 0 or a missing name leaves a source out.
            None: in proportion to blocks, so that every source reaches the end of its epoch at about the same time.
        seed: Another seed is another order.
        cycle: Samples per cycle; the resolution of the weights is 1 / cycle.
        shuffle_chunks: Chunks whose blocks are shuffled together.

    Raises:
        UserError: Negative weights, unknown names, no weight at all, or a weight too small for the cycle.
    """

    def __init__(
        self,
        sources: Sequence[SourceBlocks],
        *,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        cycle: int = 1024,
        shuffle_chunks: int = 1,
    ) -> None:
        if cycle < 1 or shuffle_chunks < 1:
            raise UserError(f"data order: {cycle=} and {shuffle_chunks=} must be at least 1")
        names = [source.name for source in sources]
        if weights is None:
            weights = {source.name: float(source.blocks) for source in sources}
            if not any(weights.values()):
                raise UserError(
                    f"the data holds no complete row: sources {names} have fewer tokens than one sequence; "
                    "prepare more text or lower data.seq_len"
                )
        unknown = sorted(set(weights) - set(names))
        if unknown:
            raise UserError(f"data.weights names unknown sources {unknown}; the data has {names}")
        negative = {name: w for name, w in weights.items() if not 0 <= w < float("inf")}
        if negative:
            raise UserError(f"data.weights must be finite and not negative, found {negative}")
        if not any(weights.values()):
            raise UserError(f"data.weights leaves nothing to train on: every weight of {names} is 0")
        self.sources = tuple(sources)
        self.seed = seed
        self.cycle = cycle
        self.shuffle_chunks = shuffle_chunks
        wanted = [float(weights.get(name, 0.0)) for name in names]
        self.quotas = quotas_of(wanted, cycle)
        for source, weight, quota in zip(self.sources, wanted, self.quotas, strict=True):
            if weight > 0 and quota == 0:
                raise UserError(
                    f"data.weights: source {source.name!r} has {weight / sum(wanted):.2e} of the samples, less than "
                    f"one in a cycle of {cycle}; raise its weight, set it to 0, or raise data.cycle"
                )
            if quota and source.blocks == 0:
                raise UserError(
                    f"source {source.name!r} has weight {weight:g} but not one complete row; "
                    "prepare more text, lower data.seq_len, or set its weight to 0"
                )
        self._make_caches()

    @property
    def shares(self) -> dict[str, float]:
        """Realised share of the samples by source name, exact over every cycle."""
        return {source.name: quota / self.cycle for source, quota in zip(self.sources, self.quotas, strict=True)}

    def _make_caches(self) -> None:
        # Per instance: the functions are pure, and neighbouring samples ask for the same cycle, epoch and group.
        self._cycle_plan = lru_cache(maxsize=8)(self._make_cycle_plan)
        self._epoch_plan = lru_cache(maxsize=4 * len(self.sources))(self._make_epoch_plan)
        self._group_blocks = lru_cache(maxsize=4 * len(self.sources))(self._make_group_blocks)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("sources", "quotas", "seed", "cycle", "shuffle_chunks")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    def __call__(self, n: int) -> Sample:
        """Where global sample n comes from."""
        if n < 0:
            raise ValueError(f"sample numbers start at 0, got {n}")
        k, position = divmod(n, self.cycle)
        source_of, rank_of = self._cycle_plan(k)
        s = int(source_of[position])
        i = k * self.quotas[s] + int(rank_of[position])
        epoch, place = divmod(i, self.sources[s].blocks)
        _, ends = self._epoch_plan(s, epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[group - 1]) if group else 0
        return Sample(s, epoch, int(self._group_blocks(s, epoch, group)[place - begin]))

    def counts(self, n: int) -> tuple[int, ...]:
        """How many of the samples 0..n-1 come from each source."""
        k, rest = divmod(n, self.cycle)
        partial = np.bincount(self._cycle_plan(k)[0][:rest], minlength=len(self.sources))
        return tuple(k * quota + int(p) for quota, p in zip(self.quotas, partial, strict=True))

    def _make_cycle_plan(self, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For every position of cycle k: its source, and how many samples of that source precede it in the cycle."""
        source_of = np.repeat(np.arange(len(self.quotas)), self.quotas)[permutation(self.cycle, self.seed, "cycle", k)]
        rank_of = np.empty(self.cycle, dtype=np.int64)
        for s, quota in enumerate(self.quotas):
            rank_of[source_of == s] = np.arange(quota)
        return source_of, rank_of

    def _make_epoch_plan(self, s: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The chunks of one epoch in the order they are visited, and the running block count after each group."""
        source = self.sources[s]
        chunks = permutation(len(source.chunk_blocks), self.seed, "chunks", source.name, epoch)
        blocks = np.asarray(source.chunk_blocks, dtype=np.int64)[chunks]
        ends = np.cumsum(np.add.reduceat(blocks, np.arange(0, len(blocks), self.shuffle_chunks)))
        return chunks, ends

    def _make_group_blocks(self, s: int, epoch: int, group: int) -> npt.NDArray[np.int64]:
        """The blocks of one group of chunks, in the order they are read."""
        source = self.sources[s]
        chunks, _ = self._epoch_plan(s, epoch)
        begins = np.concatenate([[0], np.cumsum(source.chunk_blocks)])
        mine = chunks[group * self.shuffle_chunks : (group + 1) * self.shuffle_chunks]
        blocks = np.concatenate([np.arange(begins[c], begins[c + 1]) for c in mine])
        return blocks[permutation(len(blocks), self.seed, "blocks", source.name, epoch, group)].astype(np.int64)
