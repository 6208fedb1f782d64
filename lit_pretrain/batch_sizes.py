"""Batch sizes: how much each optimizer step of a run reads, and where it begins, in closed form.

A run has one size of the batch, or a schedule of sizes by tokens. Both say nothing of the order of
the data: a schedule only cuts the same rows into steps of another length. So the first row of a
step is arithmetic on the schedule, and a checkpoint stores its step and no state of a loader.

Steps that a run leaves out (`skips.py`) keep their size: the n-th step that is made has the size of
its place in the schedule, and reads the rows that it would have read there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypedDict

from lit_pretrain.errors import UserError
from lit_pretrain.skips import Skips

DEFAULT_TOKENS = 4096
"""Inputs per optimizer step of prepared text, where a config gives neither size nor schedule."""
SETTING = "data.batch_schedule"
BATCH_SETTINGS = ("global_batch_tokens", "batch_schedule")
"""Settings of prepared text that say how much a step reads."""


@dataclass(kw_only=True)
class ScheduledBatch:
    """A size of the batch that holds from some point of a run until the next one."""

    from_tokens: float
    """Where it begins, in input tokens from the start of the run; 0 for the first. Rounded to the
    nearest optimizer step, a half up.
    """
    tokens: int
    """Inputs per optimizer step over all devices."""


class ScheduleEntry(TypedDict):
    """A `ScheduledBatch` as plain values, with the place where it begins counted exactly."""

    from_tokens: int
    tokens: int


class BatchSettings(TypedDict):
    """The settings of `BATCH_SETTINGS`, one of which is None."""

    global_batch_tokens: int | None
    batch_schedule: list[ScheduleEntry] | None


@dataclass(frozen=True)
class BatchSizes:
    """The size of every optimizer step, in tokens or in rows.

    A place is the number of a step if nothing were left out; without skips it is the step.
    """

    begins: tuple[int, ...]
    """Place at which each size begins; rising from 0."""
    sizes: tuple[int, ...]
    """The sizes, one for each of `begins`."""
    skips: Skips = field(default_factory=Skips)
    """Places that are left out."""

    @classmethod
    def one(cls, size: int) -> BatchSizes:
        """Give every step the same size."""
        return cls((0,), (size,))

    @classmethod
    def scheduled(cls, schedule: Sequence[ScheduledBatch]) -> BatchSizes:
        """Lay out a schedule, in tokens.

        Raises:
            UserError: It does not begin at 0, its entries are out of order or less than a step
                apart, or a size is not positive.
        """
        if not schedule:
            raise UserError(
                f"{SETTING} is empty; give sizes, such as [{{from_tokens: 0, tokens: 2048}},"
                " {from_tokens: 1000000, tokens: 4096}], or data.global_batch_tokens"
            )
        found = cls((), ())
        for i, entry in enumerate(schedule):
            here, begin = f"{SETTING}[{i}]", entry.from_tokens
            if entry.tokens < 1:
                raise UserError(f"{here}.tokens={entry.tokens} must be at least 1")
            if not 0 <= begin < math.inf:
                raise UserError(f"{here}.from_tokens={begin:g} must be finite and not negative")
            if i == 0 and begin:
                raise UserError(
                    f"{here}.from_tokens={begin:,.15g} must be 0: the schedule gives the size of"
                    " every step, from the first one on"
                )
            place = found.nearest(Fraction(begin), later=True) if i else 0
            if i and place <= found.begins[-1]:
                raise UserError(
                    f"{here}.from_tokens={begin:,.15g} is step {place:,}, but the size before it"
                    f" begins at step {found.begins[-1]:,} (token"
                    f" {found.first(found.begins[-1]):,}): sizes stand in their order, one"
                    f" optimizer step or more apart; the next may begin at token"
                    f" {found.first(found.begins[-1] + 1):,}"
                )
            found = cls((*found.begins, place), (*found.sizes, entry.tokens))
        merged = [
            (place, size)
            for i, (place, size) in enumerate(zip(found.begins, found.sizes, strict=True))
            if i == 0 or size != found.sizes[i - 1]
        ]
        return cls(tuple(place for place, _ in merged), tuple(size for _, size in merged))

    @classmethod
    def of(cls, data: Mapping[str, Any], skips: Skips = Skips()) -> BatchSizes:
        """Read the sizes, in tokens, from the `data` of a config of prepared text.

        Args:
            data: Plain values; a missing setting has the default of `TextData`.
            skips: Optimizer steps that are left out.

        Raises:
            UserError: The config states both a size and a schedule, or none that can be.
        """
        size = data.get("global_batch_tokens")
        schedule = scheduled_batches(data.get("batch_schedule"))
        if schedule is not None and size is not None:
            raise UserError(
                f"give the size of a step either as data.global_batch_tokens or as {SETTING}, not"
                " both (null takes one of a config back)"
            )
        if schedule is not None:
            return replace(cls.scheduled(schedule), skips=skips)
        size = DEFAULT_TOKENS if size is None else size
        if size < 1:
            raise UserError(f"data.global_batch_tokens={size} must be at least 1")
        return cls((0,), (size,), skips)

    @property
    def settings(self) -> BatchSettings:
        """The settings of prepared text that say the same in the fewest words."""
        if len(self.sizes) == 1:
            return {"global_batch_tokens": self.sizes[0], "batch_schedule": None}
        entries = [
            ScheduleEntry(from_tokens=self.until(begin), tokens=size)
            for begin, size in zip(self.begins, self.sizes, strict=True)
        ]
        return {"global_batch_tokens": None, "batch_schedule": entries}

    # ------------------------------------------------------------------ arithmetic

    @cached_property
    def _firsts(self) -> list[int]:
        """What is read before each size begins, with what is left out."""
        spans = zip(pairwise(self.begins), self.sizes, strict=False)
        return [0, *accumulate((end - begin) * size for (begin, end), size in spans)]

    def until(self, place: int) -> int:
        """Count what lies before a place, with what is left out."""
        k = bisect_right(self.begins, place) - 1
        return self._firsts[k] + (place - self.begins[k]) * self.sizes[k]

    @cached_property
    def left_out(self) -> Skips:
        """The ranges that are left out, in the unit of the sizes."""
        return Skips.of((self.until(begin), self.until(end)) for begin, end in self.skips.ranges)

    def size(self, step: int) -> int:
        """Return the size of the step."""
        return self.sizes[bisect_right(self.begins, self.skips.place(step)) - 1]

    def first(self, step: int) -> int:
        """Count what is read before a step: the number of its first row or token."""
        if not self.skips:
            return self.until(step)
        return self.left_out.kept_until(self.until(self.skips.place(step)))

    def whole(self, amount: int) -> int:
        """Return the most steps that read no more than an amount."""
        return bisect_right(range(amount // min(self.sizes) + 1), amount, key=self.first) - 1

    # ------------------------------------------------------------------ without what is left out

    @property
    def planned(self) -> BatchSizes:
        """The same sizes with nothing left out.

        Schedules of the rates and the length of a run follow them, so that a step left out later
        does not move the rate of one that has been made.
        """
        return replace(self, skips=Skips()) if self.skips else self

    def _span_of(self, amount: float | Fraction) -> int:
        return max(0, bisect_right(self._firsts, amount) - 1)

    def at(self, amount: float) -> float:
        """Return how many planned steps an amount is, with the fraction of the last one."""
        k = self._span_of(amount)
        return self.begins[k] + (amount - self._firsts[k]) / self.sizes[k]

    def steps(self, amount: float) -> int:
        """Return the fewest planned steps that read an amount."""
        return math.ceil(self.at(amount))

    def nearest(self, amount: Fraction, *, later: bool) -> int:
        """Return the place whose beginning is nearest to an amount.

        Args:
            amount: Not negative.
            later: Of two that are equally near, whether the later one is taken.
        """
        k = self._span_of(amount)
        exact = self.begins[k] + (amount - self._firsts[k]) / self.sizes[k]
        half = Fraction(1, 2)
        return math.floor(exact + half) if later else math.ceil(exact - half)

    # ------------------------------------------------------------------ what follows from them

    @property
    def unit(self) -> int:
        """Return the greatest common divisor of all sizes."""
        return math.gcd(*self.sizes)

    @property
    def largest(self) -> int:
        """Return the largest size."""
        return max(self.sizes)

    def over(self, size: int) -> BatchSizes:
        """Convert tokens to rows of `size` tokens; `StepSize` refuses what does not divide."""
        return replace(self, sizes=tuple(max(1, tokens // size) for tokens in self.sizes))

    def begins_as(self, other: BatchSizes, places: int) -> bool:
        """Tell whether the first places have the same sizes in other batch sizes."""
        return self._until(places) == other._until(places)

    def _until(self, places: int) -> list[tuple[int, int]]:
        spans = zip(self.begins, self.sizes, strict=True)
        return [(begin, size) for begin, size in spans if begin < places]


def scheduled_batches(entries: Sequence[Any] | None) -> list[ScheduledBatch] | None:
    """Build the entries of a schedule that a config gives as plain values.

    Raises:
        UserError: An entry lacks a field, has one too many, or holds no number.
    """
    if entries is None:
        return None
    found = []
    for i, entry in enumerate(entries):
        if isinstance(entry, ScheduledBatch):
            found.append(entry)
            continue
        try:
            made = ScheduledBatch(**entry)
            # float: YAML reads 15e6 as text.
            begin, tokens = float(made.from_tokens), int(made.tokens)
            if isinstance(made.tokens, bool) or tokens != float(made.tokens):
                raise ValueError(f"tokens: {made.tokens!r} is no whole number")
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{SETTING}[{i}]: {error}; an entry has from_tokens and tokens, such as"
                " {from_tokens: 1000000, tokens: 4096}"
            ) from None
        found.append(ScheduledBatch(from_tokens=begin, tokens=tokens))
    return found
