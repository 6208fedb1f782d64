"""Search the meshes of a number of devices for the layout that trains fastest and fits.

All sizes that divide the devices, the network and the rows of a step are tried, with every
micro-batch that the step allows and every kind of activation checkpointing. What does not fit into
the memory of a device is dropped, the rest is ordered by tokens per second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import CHECKPOINTING, ModelConfig
from lit_pretrain.scaling.flops import GIB, beside, flops_per_token
from lit_pretrain.scaling.memory import Layout, peak
from lit_pretrain.scaling.step_time import Cluster, MatrixUpdate, StepTime, step_time
from lit_pretrain.step_size import MeshSizes, counted

_MOST_ROWS = 64
"""Rows of a micro-batch that are tried where the step's size is not known."""


@dataclass(frozen=True)
class LayoutCandidate:
    """One layout that could be run."""

    axes: MeshSizes
    layout: Layout
    micro_batches: int
    time: StepTime
    bytes: float
    """Memory of one device, with what lies beside the tensors."""

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens that one device trains on in a second."""
        tokens = self.layout.rows * self.layout.seq_len * self.micro_batches
        return tokens / self.layout.together / self.time.seconds

    def mfu(self, config: ModelConfig, peak: float) -> float:
        """Return the share of a peak in FLOP/s that training reaches, counting full attention."""
        per_token = flops_per_token(config, self.layout.seq_len).training
        return self.tokens_per_second * per_token / peak


class LayoutSearch(NamedTuple):
    """What a search has found."""

    fitting: list[LayoutCandidate]
    """The best candidate of each mesh that fits, the fastest mesh first."""
    too_large: list[LayoutCandidate]
    """The smallest candidate of each mesh of which none fits, the smallest first."""
    tried: int
    """Layouts in all."""


def search_layouts(
    config: ModelConfig,
    layout: Layout,
    cluster: Cluster,
    *,
    devices: int,
    limit: float,
    update: MatrixUpdate | None = None,
    splits: bool = True,
) -> LayoutSearch:
    """Try every mesh of a number of devices.

    Args:
        config: Shape of the network.
        layout: What does not change: precision, optimizer, rows of a step, compilation.
        cluster: The devices.
        devices: How many there are.
        limit: Bytes of one device.
        update: The optimizer's update of all matrices. Default: one that needs no whole ones.
        splits: Whether the objective, the blocks and the adapter can be split over tp and cp.

    Raises:
        UserError: The rows of a step cannot be divided over the devices at all, or nothing fits.
    """
    best: dict[MeshSizes, LayoutCandidate] = {}
    least: dict[MeshSizes, LayoutCandidate] = {}
    tried = 0
    for axes in _meshes(config, layout.seq_len, devices, cluster.machine, splits=splits):
        if layout.float8 and axes.tp > 1:
            continue  # operands are scaled as a whole
        for candidate in _candidates(config, layout, cluster, axes, update):
            tried += 1
            found = best if candidate.bytes <= limit else least
            kept = found.get(axes)
            if kept is None or _order(candidate, found is best) < _order(kept, found is best):
                found[axes] = candidate
    if not tried:
        raise UserError(
            f"a step of {counted(layout.divided_rows or 0, 'rows')} cannot be divided over"
            f" {devices:,} devices: set data.global_batch_tokens, or all sizes of"
            " data.batch_schedule, to a multiple of"
            f" {devices * layout.seq_len:,}, or split rows with parallel.cp or matrices with"
            " parallel.tp"
        )
    too_large = sorted((c for axes, c in least.items() if axes not in best), key=lambda c: c.bytes)
    if not best:
        smallest = too_large[0]
        raise UserError(
            f"no layout of {counted(devices, 'devices')} fits: the smallest,"
            f" {smallest.axes.described}, takes {smallest.bytes / GIB:,.1f} GiB of"
            f" {limit / GIB:,.1f} on each. More devices, a smaller network or shorter rows would"
        )
    return LayoutSearch(
        sorted(best.values(), key=lambda c: (-c.tokens_per_second, sum(s > 1 for s in c.axes))),
        too_large,
        tried,
    )


def _order(candidate: LayoutCandidate, fits: bool) -> tuple[float, int]:
    """Order the candidates of a mesh: by speed if they fit, else by memory.

    Of those that differ by less than the model of a step can tell, the one with the largest
    micro-batch is first: what each launch of a kernel costs is not in the model.
    """
    speed = float(f"{candidate.tokens_per_second:.3g}")
    return (-speed, -candidate.layout.rows) if fits else (candidate.bytes, 0)


def _meshes(
    config: ModelConfig, seq_len: int, devices: int, machine: int, *, splits: bool
) -> Iterator[MeshSizes]:
    """Yield the meshes that divide devices, network and rows; tp stays within a machine."""
    for tp in _divisors(devices):
        if tp > 1 and (tp > machine or not splits or config.reads_previous):
            continue
        if any(size % tp for size in config.tp_sizes.values()):
            continue
        for cp in _divisors(devices // tp):
            if cp > 1 and (not splits or config.attention == "varlen"):
                continue
            groups = devices // (tp * cp)
            for copies in _divisors(groups):
                axes = MeshSizes(copies, groups // copies, cp, tp)
                if seq_len % axes.tokens_unit == 0:
                    yield axes


def _candidates(
    config: ModelConfig,
    layout: Layout,
    cluster: Cluster,
    axes: MeshSizes,
    update: MatrixUpdate | None,
) -> Iterator[LayoutCandidate]:
    """Yield a mesh with every micro-batch that the step allows."""
    groups = axes.devices // axes.together
    if layout.step_rows is None or layout.divided_rows is None:
        choices = [2**i for i in range(_MOST_ROWS.bit_length())]
        of_group = None
    elif layout.divided_rows % groups:
        return
    else:
        of_group = layout.step_rows // groups
        choices = _divisors(of_group)
    for rows in choices:
        micro_batches = 1 if of_group is None else of_group // rows
        for checkpointing in CHECKPOINTING:
            laid = dataclasses.replace(
                layout, devices=axes.devices, copies=axes.dp_replicate,
                sharding="fsdp" if axes.devices > 1 else "none",
                cp=axes.cp, tp=axes.tp, rows=rows * layout.group,
                accumulates=micro_batches > 1, checkpointing=checkpointing,
            )  # fmt: skip
            tensors = peak(config, laid).bytes
            yield LayoutCandidate(
                axes, laid, micro_batches,
                step_time(
                    config, laid, cluster, micro_batches=micro_batches, update=update
                ),
                tensors + beside(tensors, laid.device),
            )  # fmt: skip


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
