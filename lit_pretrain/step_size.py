"""Sizes of meshes and steps: how both are divided over devices, by `plan` and `fit` alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lit_pretrain.batch_sizes import SETTING, BatchSizes
from lit_pretrain.errors import UserError


class MeshSizes(NamedTuple):
    """How many devices stand along each axis of a mesh."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def devices(self) -> int:
        """Count all devices."""
        return math.prod(self)

    @property
    def together(self) -> int:
        """Count the devices that read the same rows."""
        return self.cp * self.tp

    @property
    def shards(self) -> int:
        """Count the parts into which FSDP shards what tensor parallelism leaves whole."""
        return self.dp_shard * self.cp

    @property
    def tokens_unit(self) -> int:
        """Return what the tokens of a row must be a multiple of.

        A row is cut into two chunks for each device along cp, and the tokens of a device again
        along tp.
        """
        return self.tp * (2 * self.cp if self.cp > 1 else 1)

    @property
    def described(self) -> str:
        """Name the axes in use, such as `dp_shard 2 × tp 2`."""
        used = [f"{axis} {size}" for axis, size in self._asdict().items() if size > 1]
        return " × ".join(used) or "one device"


class Division(NamedTuple):
    """An optimizer step as devices × rows × micro-batches."""

    devices: int
    micro_batch_size: int
    """Rows that one device processes at once."""
    micro_batches: int
    """Micro-batches of each device: the accumulation."""
    together: int = 1
    """Devices that read the same rows (parallel.cp × parallel.tp)."""

    def text(self, unit: str, tokens: int | None = None) -> str:
        """Write the division as a product, such as `2 devices × 4 rows × 512 tokens`.

        Args:
            unit: What a row is called, in the plural.
            tokens: Tokens of a row; None leaves them out.
        """
        factors = [_groups(self.devices, self.together), counted(self.micro_batch_size, unit)]
        factors += [] if tokens is None else [f"{tokens:,} tokens"]
        factors += [] if self.micro_batches == 1 else [f"{self.micro_batches:,} micro-batches"]
        return " × ".join(factors)


@dataclass(frozen=True)
class StepSize:
    """The size of an optimizer step over all devices, as a config states it.

    It is the contract: devices and micro-batches only decide how a step is computed, so a
    micro-batch that does not divide a device's rows is lowered.
    """

    total: int
    """Tokens if `tokens_per_row` is given, else rows."""
    tokens_per_row: int | None = None
    unit: str = "rows"
    """What a row is called, in the plural."""
    scheduled: int | None = None
    """Of one size among those of a schedule, their greatest common divisor; None without one."""

    @property
    def rows(self) -> int:
        """Rows of a step over all devices."""
        return self.divide(1, 1).micro_batches

    def divide(
        self, devices: int, micro_batch_size: int, *, fixed: bool = False, together: int = 1
    ) -> Division:
        """Divide a step equally over devices, and each share into the fewest equal micro-batches.

        Args:
            devices: Over all machines.
            micro_batch_size: The most rows that a device may process at once.
            fixed: Whether the loss depends on the micro-batch, which then must divide as it is.
            together: Devices that read the same rows, and so count as one here.

        Raises:
            UserError: Not even single rows divide; the message says what would.
        """
        groups = devices // together
        name = "devices" if together == 1 else f"groups of {together} devices"
        factors = {name: groups} if groups > 1 else {}
        factors |= {"data.seq_len": self.tokens_per_row} if self.tokens_per_row is not None else {}
        factors |= {"data.micro_batch_size": micro_batch_size} if fixed else {}
        if self.total < 1 or self.total % math.prod(factors.values()):
            raise UserError(self._mistake(factors, groups, together))
        share = self.total // (self.tokens_per_row or 1) // groups
        size = largest_divisor(share, micro_batch_size)
        return Division(devices, size, share // size, together)

    def lowered(self, division: Division, asked: int) -> str | None:
        """Say why `division` has a smaller micro-batch than `asked`; None if it has not."""
        if division.micro_batch_size == asked:
            return None
        share = division.micro_batch_size * division.micro_batches
        said = f"data.micro_batch_size lowered from {asked} to {division.micro_batch_size}: "
        said += f"a step of {counted(self.rows, self.unit)}"
        groups = division.devices // division.together
        if groups > 1:
            said += f" leaves {share:,} to each of {_groups(division.devices, division.together)}"
        if share > asked:
            unit = asked * groups * (self.tokens_per_row or 1)
            said += f"; {self._setting(_nearest(self.total, unit))} would keep {asked}"
        return said

    def _setting(self, total: int) -> str:
        if self.scheduled is not None:
            return f"{SETTING}: tokens={total}"
        return f"data.global_batch_{'rows' if self.tokens_per_row is None else 'tokens'}={total}"

    def _mistake(self, factors: dict[str, int], groups: int, together: int) -> str:
        unit = math.prod(factors.values())
        product = f"{' × '.join(factors)} = {' × '.join(map(str, factors.values()))}"
        product += "" if len(factors) == 1 else f" = {unit}"
        said = f"{self._setting(self.total)} must be a multiple of {product}"
        said += ", as every size" if self.scheduled is not None else ""
        said += f"; the nearest is {_nearest(self.total, unit)}"
        least, divided = unit // groups, self.scheduled or self.total
        if groups == 1 or divided < 1 or divided % least:
            return said
        below = largest_divisor(divided // least, groups) * together
        above = smallest_divisor(divided // least, groups)
        would = (
            f"{below} or {above * together} devices"
            if above is not None
            else counted(below, "devices")
        )
        return f"{said}, or take {would} (trainer.devices × trainer.num_nodes)"


def sizes_in_tokens(batch: BatchSizes, seq_len: int, *, scheduled: bool) -> tuple[StepSize, ...]:
    """List the different sizes of a step whose batch is given in tokens, in their order.

    Args:
        batch: Tokens of the optimizer steps.
        seq_len: Inputs per row.
        scheduled: Whether a schedule states them.
    """
    unit = batch.unit if scheduled else None
    return tuple(StepSize(size, seq_len, scheduled=unit) for size in dict.fromkeys(batch.sizes))


def fullest(sizes: Sequence[StepSize], divisions: Sequence[Division]) -> tuple[StepSize, Division]:
    """Choose the size of a step that takes the most memory: with the largest micro-batch.

    Of several it is the largest step, which accumulates if one of them does.

    Args:
        sizes: The different sizes of a step.
        divisions: How each of them is divided.
    """
    return max(
        zip(sizes, divisions, strict=True),
        key=lambda pair: (pair[1].micro_batch_size, pair[0].total),
    )


def common_rows(sizes: Sequence[StepSize]) -> int | None:
    """Return what the rows of all steps are a multiple of; None where they have one size."""
    return math.gcd(*(size.rows for size in sizes)) if len(sizes) > 1 else None


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`."""
    return next(k for k in range(min(number, most), 0, -1) if number % k == 0)


def smallest_divisor(number: int, least: int) -> int | None:
    """Return the smallest divisor of `number` that is at least `least`; None if there is none."""
    return next((k for k in range(least, number + 1) if number % k == 0), None)


def counted(number: int, unit: str) -> str:
    """Write a number with its unit, which is given in the plural: `1 row`, `1,024 rows`."""
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def _groups(devices: int, together: int) -> str:
    if together == 1:
        return counted(devices, "devices")
    return f"{counted(devices // together, 'groups')} of {together} devices"


def _nearest(total: int, unit: int) -> int:
    return max(1, round(total / unit)) * unit
