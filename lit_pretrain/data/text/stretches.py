"""Stretches: where the mixture of a run changes, and how many samples of each source come before.

A mixture changes where a phase begins, and where a source reaches its cap of epochs: the others
then take its place in proportion to their weights. Both follow from the mixture alone, never from
the length of the run. Within a stretch the samples come in cycles that hold exactly `quota[s]`
samples of source s, shuffled; the end of a stretch cuts its last cycle short.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.hashing import permutation

MaxEpochs = float | Mapping[str, float] | None
"""How often a source may be read: one number for all, or by source name; None sets no limit."""


@dataclass(frozen=True)
class SourceBlocks:
    """A source of the mixture with the sizes of its chunks."""

    name: str
    chunk_blocks: tuple[int, ...]
    """Number of blocks of each chunk, in stored order."""

    @property
    def blocks(self) -> int:
        """Number of blocks of the whole source."""
        return sum(self.chunk_blocks)


@dataclass(frozen=True)
class Change:
    """A change to other weights at one sample."""

    begin: int
    """Number of the first sample that is drawn by the new weights."""
    weights: Mapping[str, float] | None
    """Share of the samples by source name, in any scale; 0 or a missing name leaves a source out.
    None gives shares in proportion to blocks.
    """
    setting: str
    """Name of the setting that holds the weights, for messages."""


@dataclass(frozen=True)
class Stretch:
    """Successive samples that are drawn by the same quotas."""

    begin: int
    """Number of its first sample."""
    first_cycle: int
    """Number of its first cycle. Cycles are numbered over all stretches, those cut short included,
    so that each has a shuffle of its own.
    """
    quotas: tuple[int, ...]
    """Samples of each source in a cycle."""
    before: tuple[int, ...]
    """Samples of each source before this stretch."""


def quotas_of(weights: Sequence[float], cycle: int) -> tuple[int, ...]:
    """Round weights to integers that sum to `cycle`, by largest remainder.

    Ties go to the earlier source.
    """
    total = float(sum(weights))
    exact = [w / total * cycle for w in weights]
    quotas = [int(x) for x in exact]
    # quota - exact is minus the remainder, so that the largest remainder comes first.
    by_remainder = sorted(range(len(weights)), key=lambda s: (quotas[s] - exact[s], s))
    for s in by_remainder[: cycle - sum(quotas)]:
        quotas[s] += 1
    return tuple(quotas)


def cycle_plan(
    quotas: Sequence[int], seed: int, number: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Plan a cycle: for each position its source, and the samples of that source before it.

    Args:
        quotas: Samples of each source in a cycle.
        seed: Seed of the order.
        number: Number of the cycle over all stretches.
    """
    source_of = np.repeat(np.arange(len(quotas)), quotas)[
        permutation(sum(quotas), seed, "cycle", number)
    ]
    # A stable sort keeps the positions of a source in their order, so that the r-th has rank r.
    rank_of = np.empty(len(source_of), dtype=np.int64)
    first = np.cumsum([0, *quotas])[:-1]
    rank_of[np.argsort(source_of, kind="stable")] = np.arange(len(source_of)) - np.repeat(
        first, quotas
    )
    return source_of, rank_of


def count_until(stretch: Stretch, n: int, *, seed: int) -> tuple[int, ...]:
    """Count the samples of each source among the samples 0..n-1; n is in the stretch or its end."""
    k, rest = divmod(n - stretch.begin, sum(stretch.quotas))
    begun = (0,) * len(stretch.quotas)
    if rest:
        source_of, _ = cycle_plan(stretch.quotas, seed, stretch.first_cycle + k)
        begun = tuple(np.bincount(source_of[:rest], minlength=len(stretch.quotas)).tolist())
    return tuple(
        b + k * quota + rank
        for b, quota, rank in zip(stretch.before, stretch.quotas, begun, strict=True)
    )


def checked_weights(sources: Sequence[SourceBlocks], change: Change) -> tuple[float, ...]:
    """Check the weights of a change and return one for each source, not normalised.

    Raises:
        UserError: Negative weights, unknown names, no weight at all, or a weight for a source
            without one block.
    """
    names = [source.name for source in sources]
    weights = change.weights
    if weights is None:
        weights = {source.name: float(source.blocks) for source in sources}
        if not any(weights.values()):
            raise UserError(
                f"the data holds no complete row: sources {names} have fewer tokens than one"
                " sequence; prepare more text or lower data.seq_len"
            )
    _check_names(weights, names, change.setting)
    negative = {name: w for name, w in weights.items() if not 0 <= w < float("inf")}
    if negative:
        raise UserError(f"{change.setting} must be finite and not negative, found {negative}")
    if not any(weights.values()):
        raise UserError(
            f"{change.setting} leaves nothing to train on: every weight of {names} is 0"
        )
    for source in sources:
        if weights.get(source.name) and source.blocks == 0:
            raise UserError(
                f"{change.setting}: source {source.name!r} has weight {weights[source.name]:g} but"
                " not one complete row; prepare more text, lower data.seq_len, or set its weight"
                " to 0"
            )
    return tuple(float(weights.get(name, 0.0)) for name in names)


def limits_of(sources: Sequence[SourceBlocks], max_epochs: MaxEpochs) -> tuple[int | None, ...]:
    """Compute the most samples of each source, None without a limit, rounded down to whole blocks.

    Raises:
        UserError: Unknown names, or a cap that is not positive or less than one block.
    """
    caps = max_epochs
    if caps is None:
        return (None,) * len(sources)
    if not isinstance(caps, Mapping):
        caps = {source.name: caps for source in sources if source.blocks}
    _check_names(caps, [source.name for source in sources], "data.max_epochs")
    limits: list[int | None] = []
    for source in sources:
        cap = caps.get(source.name)
        if cap is None or source.blocks == 0:
            limits.append(None)
            continue
        if not 0 < cap < float("inf"):
            raise UserError(
                f"data.max_epochs must be finite and above 0, found {cap:g} for {source.name!r};"
                " null means no limit"
            )
        # The cap is the decimal number as written: 1.1 epochs of 10 blocks are 11 blocks.
        limit = math.floor(Fraction(str(cap)) * source.blocks)
        if limit == 0:
            raise UserError(
                f"data.max_epochs: {cap:g} epochs of {source.name!r} are less than one of its"
                f" {source.blocks} rows; raise the cap, or leave the source out by weight 0"
            )
        limits.append(limit)
    return tuple(limits)


def lay_stretches(
    sources: Sequence[SourceBlocks],
    changes: Sequence[Change],
    weights: Sequence[Sequence[float]],
    limits: Sequence[int | None],
    *,
    seed: int,
    cycle: int,
) -> tuple[tuple[Stretch, ...], int | None]:
    """Lay out the stretches of an order.

    Args:
        sources: All sources of the data.
        changes: The changes of the mixture by rising `begin`, the first at sample 0.
        weights: The weight of each source after each change.
        limits: Most samples of each source; None without a limit.
        seed: Seed of the order.
        cycle: Samples per cycle.

    Returns:
        The stretches, and the number of samples after which every source has reached its cap; None
        if that never happens.
    """
    stretches: list[Stretch] = []
    begin, first_cycle, before = 0, 0, (0,) * len(sources)
    for change, wanted, following in zip(
        changes, weights, [*(c.begin for c in changes[1:]), None], strict=True
    ):
        while following is None or begin < following:
            # A source at its cap has no weight left, and the shares of the others grow in
            # proportion.
            left = [
                0.0 if limit is not None and read >= limit else w
                for w, limit, read in zip(wanted, limits, before, strict=True)
            ]
            if not any(left):
                return tuple(stretches), begin
            stretch = Stretch(
                begin, first_cycle, _quotas(sources, left, cycle, change.setting), before
            )
            stretches.append(stretch)
            # A stretch ends with its phase, or before, where the first source is used up.
            ends = [n for n in (_first_limit(stretch, limits, seed), following) if n is not None]
            if not ends:
                return tuple(stretches), None
            end = min(ends)
            before = count_until(stretch, end, seed=seed)
            # A cycle that was cut short keeps its number, so that no later one is shuffled like it.
            first_cycle += math.ceil((end - begin) / cycle)
            begin = end
    raise AssertionError("the last change has no end")


def _quotas(
    sources: Sequence[SourceBlocks], weights: Sequence[float], cycle: int, setting: str
) -> tuple[int, ...]:
    quotas = quotas_of(weights, cycle)
    for source, weight, quota in zip(sources, weights, quotas, strict=True):
        if weight > 0 and quota == 0:
            raise UserError(
                f"{setting}: source {source.name!r} has {weight / sum(weights):.2e} of the samples,"
                f" less than one in a cycle of {cycle}; raise its weight, set it to 0, or raise"
                " data.cycle"
            )
    return quotas


def _first_limit(stretch: Stretch, limits: Sequence[int | None], seed: int) -> int | None:
    """Find where the first source reaches its limit, were the stretch to have no other end.

    Returns:
        The number of the sample after the last one of that source; None if none has a limit.
    """
    # Source -> (cycle of the stretch, rank within the cycle) of the last sample that it may give.
    last = {
        s: divmod(limit - stretch.before[s] - 1, quota)
        for s, (limit, quota) in enumerate(zip(limits, stretch.quotas, strict=True))
        if limit is not None and quota
    }
    if not last:
        return None
    # A source that ends in a later cycle cannot be the first.
    k = min(cycle for cycle, _ in last.values())
    source_of, _ = cycle_plan(stretch.quotas, seed, stretch.first_cycle + k)
    place = min(
        int(np.flatnonzero(source_of == s)[rank]) for s, (cycle, rank) in last.items() if cycle == k
    )
    return stretch.begin + k * sum(stretch.quotas) + place + 1


def _check_names(named: Mapping[str, float], names: Sequence[str], setting: str) -> None:
    unknown = sorted(set(named) - set(names))
    if unknown:
        hint = did_you_mean(unknown[0], names)
        raise UserError(
            f"{setting} names unknown sources {unknown}; the data has {list(names)}.{hint}"
        )
