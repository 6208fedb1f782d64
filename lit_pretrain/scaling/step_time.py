"""Seconds of an optimizer step on a mesh of devices: products, attention, memory, communication.

Every part has the rate of what limits it: matrix products and attention a share of the device's
peak, element-wise work the bandwidth of its memory, communication that of the slowest link of its
group. The shares are fitted to published runs (`scripts/step_time.py` fits and lists them).

Symbols: T tokens of a micro-batch that the devices of one tensor-parallel group work on, d width, n
layers, W weights of the network.

Communication is counted as in Korthikanti et al. 2022 (tensor parallelism with split sequences),
Llama Team 2024, section 3.3.2 (context parallelism by gathered keys and values) and Rajbhandari et
al. 2020 (weights and gradients in parts). Only the sharding overlaps with work, in the share that
the published runs show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import Checkpointing, ModelConfig, count_parameters, kept_within
from lit_pretrain.scaling.flops import Device, flops_per_token
from lit_pretrain.scaling.memory import Layout, offloaded
from lit_pretrain.update_work import UpdateWork

ACHIEVED = 0.82
"""Share of a link's nominal bandwidth that large collectives reach: 370 of 450 GB/s over NVLink 4
and 42 of 50 GB/s over a network of 400 Gbit/s are usual readings of NCCL's own tests.
"""
EXPOSED = 0.75
"""Share of the time of gathering weights and scattering gradients that adds to the step."""
TRAFFIC = {False: 550.0, True: 386.0}
"""Bytes that element-wise work of a layer moves for each channel of a token, forward and backward;
less where it is compiled."""
LATENCY = {"machine": 10e-6, "network": 25e-6}
"""Seconds that a collective takes for each further device of its group, however small it is."""
HOST = 50e9
"""Bytes per second between a device and its host: of PCIe 5.0's 64 GB/s what large copies reach;
not measured here."""
FP8 = 1.93
"""How much faster than in bf16 the products of blocks are in fp8, in torchtitan's runs."""
_RECOMPUTED: dict[bool | str, tuple[float, float, float]] = {
    False: (0.0, 0.0, 0.0),
    "products": (0.5, 0.0, 1.0),
    "attention": (1.0, 0.0, 1.0),
    True: (1.0, 1.0, 1.0),
    "offload": (1.0, 1.0, 1.0),
}
"""Shares of the forward pass of a block that are computed twice: products, attention, the rest."""
_ATTENTION_BACKWARD = 3.5 / 3
"""Products of attention that are made for three counted ones: the scores are computed again (Dao
2023, section 3.1)."""


@dataclass(frozen=True)
class Rates:
    """What a kind of device reaches."""

    products: float
    """Share of the dense peak that the matrix products of blocks reach."""
    attention: float
    """Share of it that attention reaches, counting the half of the scores that causal masks
    leave."""
    memory: float
    """Bandwidth of the device's memory in bytes per second."""
    link: float
    """Nominal bandwidth to the other devices of a machine, one way, in bytes per second."""
    network: float
    """Nominal bandwidth to other machines, for each device, in bytes per second."""
    source: str


_HOPPER = "fitted to 52 runs of Mosaic's LLM Foundry on H100 and 11 of torchtitan"
_AMPERE = "fitted to 35 runs of Mosaic's LLM Foundry on A100"
_ASSUMED = "shares as of H100; memory and links by the data sheet"
_LIKE_H100, _LIKE_A100 = (0.82, 0.226), (0.92, 0.337)  # products and attention
_TB, _GB = 1e12, 1e9
# Memory and links by the makers' data sheets; the network is what machines with such devices
# usually have: 400 Gbit/s for each device, 200 with A100, 100 with smaller ones.
RATES: dict[str, Rates] = {
    "GB200": Rates(*_LIKE_H100, 8.0 * _TB, 900 * _GB, 50 * _GB, _ASSUMED),
    "B200": Rates(*_LIKE_H100, 8.0 * _TB, 900 * _GB, 50 * _GB, _ASSUMED),
    "B100": Rates(*_LIKE_H100, 8.0 * _TB, 900 * _GB, 50 * _GB, _ASSUMED),
    "H200": Rates(*_LIKE_H100, 4.8 * _TB, 450 * _GB, 50 * _GB, _HOPPER),
    "GH200": Rates(*_LIKE_H100, 4.0 * _TB, 450 * _GB, 50 * _GB, _HOPPER),
    "H100": Rates(*_LIKE_H100, 3.35 * _TB, 450 * _GB, 50 * _GB, _HOPPER),
    "H100 PCIe": Rates(*_LIKE_H100, 2.0 * _TB, 64 * _GB, 50 * _GB, _ASSUMED),
    "H800": Rates(*_LIKE_H100, 3.35 * _TB, 200 * _GB, 50 * _GB, _HOPPER),
    "H20": Rates(*_LIKE_H100, 4.0 * _TB, 450 * _GB, 50 * _GB, _ASSUMED),
    "A100 40GB": Rates(*_LIKE_A100, 1.555 * _TB, 300 * _GB, 25 * _GB, _AMPERE),
    "A100 80GB": Rates(*_LIKE_A100, 2.039 * _TB, 300 * _GB, 25 * _GB, _AMPERE),
    "V100 32GB": Rates(*_LIKE_H100, 0.9 * _TB, 150 * _GB, 12.5 * _GB, _ASSUMED),
    "V100 16GB": Rates(*_LIKE_H100, 0.9 * _TB, 150 * _GB, 12.5 * _GB, _ASSUMED),
    "L40S": Rates(*_LIKE_H100, 0.864 * _TB, 32 * _GB, 12.5 * _GB, _ASSUMED),
    "L4": Rates(*_LIKE_H100, 0.3 * _TB, 32 * _GB, 12.5 * _GB, _ASSUMED),
    "A40": Rates(*_LIKE_H100, 0.696 * _TB, 32 * _GB, 12.5 * _GB, _ASSUMED),
    "RTX A6000": Rates(*_LIKE_H100, 0.768 * _TB, 32 * _GB, 12.5 * _GB, _ASSUMED),
    "RTX 5090": Rates(*_LIKE_H100, 1.792 * _TB, 64 * _GB, 12.5 * _GB, _ASSUMED),
    "RTX 4090": Rates(*_LIKE_H100, 1.008 * _TB, 32 * _GB, 12.5 * _GB, _ASSUMED),
    "RTX 3090": Rates(*_LIKE_H100, 0.936 * _TB, 32 * _GB, 12.5 * _GB, _ASSUMED),
    "MI300X": Rates(*_LIKE_H100, 5.3 * _TB, 448 * _GB, 50 * _GB, _ASSUMED),
    "MI325X": Rates(*_LIKE_H100, 6.0 * _TB, 448 * _GB, 50 * _GB, _ASSUMED),
    "MI355X": Rates(*_LIKE_H100, 8.0 * _TB, 537 * _GB, 50 * _GB, _ASSUMED),
}


@dataclass(frozen=True)
class Cluster:
    """Devices of one kind, several in a machine, and machines joined by a network."""

    peak: float
    """Dense peak of matrix products in FLOP/s; in bf16 where those of the blocks are in fp8."""
    rates: Rates
    machine: int = 8
    """Devices in a machine."""

    @classmethod
    def of(
        cls, device: Device, dtype: str, *, machine: int = 8, network: float | None = None
    ) -> Cluster:
        """Build the cluster of a known device.

        Args:
            device: Its kind.
            dtype: Type of the matrix products.
            machine: Devices in a machine.
            network: Bandwidth to other machines for each device, in bytes per second. Default: what
                is usual with such devices.

        Raises:
            UserError: Its peak or its links are not known.
        """
        # Attention and head are not in fp8, and the gain of the other products is measured (`FP8`).
        peak = (
            None if device.peak(dtype) is None else device.peak("bf16" if dtype == "fp8" else dtype)
        )
        rates = RATES.get(device.name)
        if peak is None or rates is None:
            missing = (
                f"the links of {device.name} are"
                if rates is None
                else f"the peak of {device.name} in {dtype} is"
            )
            raise UserError(
                f"{missing} not known, so no layout can be chosen for it; known are"
                f" {', '.join(RATES)}"
            )
        if machine < 1:
            raise UserError(f"machine_devices={machine} must be at least 1")
        if network is not None:
            if not network > 0:
                raise UserError(f"network_gbits={network * 8 / _GB:g} must be positive")
            rates = dataclasses.replace(rates, network=network)
        return cls(peak, rates, machine)

    def collective(self, group: int, stride: int, size: float) -> float:
        """Compute the seconds of an all-gather or a reduce-scatter.

        A ring enters every machine once, so where a group has several devices of a machine, they
        share the traffic of its network.

        Args:
            group: Devices that take part.
            stride: Devices between two neighbours of the group.
            size: Bytes of the whole tensor.
        """
        if group == 1:
            return 0.0
        bandwidth, latency = self.rates.link, LATENCY["machine"]
        if group * stride > self.machine:
            neighbours = max(1, self.machine // stride)
            bandwidth = min(bandwidth, neighbours * self.rates.network)
            latency = LATENCY["network"]
        return (group - 1) / group * size / (bandwidth * ACHIEVED) + (group - 1) * latency

    def exchange(self, group: int, size: float) -> float:
        """Compute the seconds of an exchange of different data between all pairs of a group.

        Args:
            group: Devices that take part, side by side.
            size: Bytes that each sends, to itself too.
        """
        if group == 1:
            return 0.0
        if group <= self.machine:
            seconds = (group - 1) / group * size / (self.rates.link * ACHIEVED)
            return seconds + (group - 1) * LATENCY["machine"]
        far = (group - self.machine) / group * size
        return far / (self.rates.network * ACHIEVED) + (group - 1) * LATENCY["network"]


class MatrixUpdate:
    """What the optimizer's update of all matrices of the blocks takes on a mesh.

    Args:
        config: Shape of the network.
        work: `OptimizerRecipe.update_work`.
    """

    def __init__(self, config: ModelConfig, work: Callable[..., UpdateWork]) -> None:
        d, f = config.width, config.ffn_size
        q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
        sides = [(q, d), (k, d), (k, d), (d, q), (f, d), (d, f)] + [(f, d)] * config.gated
        self._count = cache(partial(work, config.n_layer * sides))

    def on(self, layout: Layout) -> UpdateWork:
        """Count it for one device of a layout."""
        copies = layout.copies if layout.sharding == "fsdp" else 1
        return self._count(shards=layout.shards, copies=copies, device=layout.device)


class StepTime(NamedTuple):
    """Seconds of the parts of a step; those of a micro-batch are counted for all of them."""

    products: float
    attention: float
    elementwise: float
    tp: float
    cp: float
    sharding: float
    """Gathering weights and scattering gradients, as far as no work hides it."""
    copies: float
    """Summing gradients over the copies of a network."""
    optimizer: float
    """Products of the update, and what travels for them."""

    @property
    def seconds(self) -> float:
        """Return the seconds of the step."""
        return sum(self)


def _recomputed(config: ModelConfig, checkpointing: Checkpointing) -> tuple[float, float, float]:
    """Return the shares of `_RECOMPUTED` for a setting."""
    if not isinstance(checkpointing, bool | str):
        kept = kept_within(config, checkpointing)
        return kept.recomputed, 0.0 if kept.attention else 1.0, 1.0
    return _RECOMPUTED[checkpointing]


def step_time(
    config: ModelConfig,
    layout: Layout,
    cluster: Cluster,
    *,
    micro_batches: int,
    update: MatrixUpdate | None = None,
) -> StepTime:
    """Compute the seconds of an optimizer step of pretraining.

    Args:
        config: Shape of the network.
        layout: How the run is laid out.
        cluster: Its devices.
        micro_batches: Micro-batches of a step.
        update: The optimizer's update of all matrices. Default: one that needs no whole ones.
    """
    per_token, rates = flops_per_token(config, layout.seq_len), cluster.rates
    again, scored, moved_again = (share / 3 for share in _recomputed(config, layout.checkpointing))
    tokens, tp, cp = layout.tokens, layout.tp, layout.cp
    whole = tokens * cp  # of the rows that a group reads together
    d, n = config.width, config.n_layer
    head = 6.0 * config.vocab_size * d
    blocks = (per_token.dense - head) * (1 + again) / (FP8 if layout.float8 else 1.0)
    products = (blocks + head) * tokens / tp / (cluster.peak * rates.products)
    scores = (per_token.causal - per_token.dense) * (1 + scored) * _ATTENTION_BACKWARD
    attention = scores * tokens / tp / (cluster.peak * rates.attention)
    moved = n * d * TRAFFIC[layout.compiled] * (1 + moved_again)
    elementwise = moved * tokens / tp / rates.memory
    elementwise += 2 * offloaded(config, layout) / HOST

    c = layout.compute_bytes
    # Four in the forward and four in the backward pass of a layer, and the gathered tokens of two
    # products once more; two around the head.
    exchanges = n * (10 + 6 * again) + 2
    exchanged = exchanges * cluster.collective(tp, 1, c * tokens * d)
    keys = 2 * c * whole * config.kv_heads * config.head_size / tp
    gathered = n * (3 + 3 * again) * cluster.collective(cp, tp, keys)

    sharding = copies = 0.0
    weights = count_parameters(config).total / tp
    if layout.sharding == "fsdp":
        shards = layout.devices // layout.copies // tp
        gather = cluster.collective(shards, tp, layout.gathered_bytes * weights)
        scatter = cluster.collective(shards, tp, layout.reduced_bytes * weights)
        sharding = EXPOSED * (2 * gather + scatter)
        part = layout.reduced_bytes * weights / shards
        copies = EXPOSED * 2 * cluster.collective(layout.copies, shards * tp, part)
    elif layout.sharding == "ddp":
        copies = EXPOSED * 2 * cluster.collective(layout.devices, 1, layout.reduced_bytes * weights)
    optimizer = 0.0
    if update is not None:
        work = update.on(layout)
        optimizer = work.flops / (cluster.peak * rates.products)
        if work.flops and layout.sharding == "fsdp":
            optimizer += cluster.exchange(layout.shards, work.within)
            optimizer += cluster.exchange(layout.devices, work.across) if work.across else 0.0
    m = micro_batches
    return StepTime(
        m * products, m * attention, m * elementwise, m * exchanged, m * gathered,
        m * sharding, m * copies if layout.sharding == "fsdp" else copies, optimizer,
    )  # fmt: skip
