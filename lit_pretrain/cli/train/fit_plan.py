"""Fit plan: what `fit` says before it starts, and the memory without which it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import Namespace

from lit_pretrain.adapter import freeze_
from lit_pretrain.checkpoint.network import find_parent, model_config
from lit_pretrain.class_path import import_class_path
from lit_pretrain.cli.train.precision import peak_dtype
from lit_pretrain.cli.train.resolve import (
    adapter_cost,
    adapter_of,
    instantiate,
    mesh_of,
    net_of,
    optimizer_of,
    parallel_in,
)
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError, warn
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.parallel.strategy import sharding_of
from lit_pretrain.report.charts import clock, short
from lit_pretrain.roles import ROLES
from lit_pretrain.rollout import BuiltIn
from lit_pretrain.scaling.flops import GIB, beside, find_device, flops_per_token, room
from lit_pretrain.scaling.forecast import Expected, expected
from lit_pretrain.scaling.memory import Answering, Layout, peak, remedies
from lit_pretrain.stage.origin import can_compile
from lit_pretrain.stage.reference import resolve_reference
from lit_pretrain.step_size import MeshSizes, common_rows, counted, fullest

_PEAKS = {
    "loss": "when the loss is computed", "block backward": "in the backward pass",
    "optimizer": "in the update", "answers": "while the network answers prompts",
}  # fmt: skip
NEAR = 0.9
"""From this share of the memory on the plan warns."""


@dataclass(frozen=True)
class FitPlan:
    """The plan of one run of `fit`."""

    line: str
    expected: Expected | None
    """None where no law covers the run."""


def layout_of(config: Namespace, data: BaseData, world: int) -> Layout:
    """Read from a resolved config how a run is laid out on its devices.

    Args:
        config: Resolved config.
        data: Its data.
        world: Devices.
    """
    device: Literal["cpu", "cuda"] = (
        "cuda"
        if config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        else "cpu"
    )
    compiled = config.model.compile != "off" and can_compile(torch.device(device)) is None
    optimizer = optimizer_of(config)
    size, division = fullest(data.step_sizes, divisions := data.divide(world))
    adapter = adapter_of(config)
    cost = None if adapter is None else adapter_cost(net_of(config), adapter)
    sizes = mesh_of(config, world) or MeshSizes()
    return Layout(
        rows=division.micro_batch_size * data.sequences_per_row, group=data.sequences_per_row,
        seq_len=data.seq_len, step_rows=size.rows, common_rows=common_rows(data.step_sizes),
        devices=world,
        sharding=sharding_of(config.trainer.strategy, parallel_in(config), world),
        copies=sizes.dp_replicate, cp=sizes.cp, tp=sizes.tp,
        precision=config.trainer.precision, float8=config.model.float8 is not None,
        compiled=compiled, fused_norm=device == "cuda",
        checkpointing=config.model.activation_checkpointing,
        optimizer_moments={role: optimizer.moments(role) for role in ROLES},
        moment_bytes=optimizer.moment_bytes, averaged=config.model.ema_half_life is not None,
        accumulates=any(each.micro_batches > 1 for each in divisions), device=device,
        trainable=trained_share(net_of(config), config.model.freeze) if cost is None else 0.0,
        added=0 if cost is None else cost.trained, quantized=0 if cost is None else cost.quantized,
        frozen=frozen_parameters(config, data.provides), answering=answers(config, data, world),
    )  # fmt: skip


def trained_share(net: ModelConfig, freeze: Sequence[str]) -> float:
    """Share of the parameters that is trained where some are frozen by name."""
    if not freeze:
        return 1.0
    with torch.device("meta"):
        made = Transformer(net)
    freeze_(made, freeze)
    return sum(p.numel() for p in made.parameters() if p.requires_grad) / sum(
        p.numel() for p in made.parameters()
    )


def frozen_parameters(config: Namespace, provides: frozenset[str]) -> int:
    """Count the parameters of networks kept beside the one that is trained.

    These are a reference's copy and a teacher.
    """
    model, shapes = config.model, []
    needs = instantiate(model.objective, "model.objective").needs
    if "ref_logp" in needs:
        place, named = resolve_reference(
            provides,
            adapter=model.adapter is not None,
            reference=model.reference,
            init_from=model.init_from,
            cache=model.reference_cache,
        )
        if place == "copy":
            shapes.append(
                net_of(config) if named is None else model_config(find_parent(named).shape)
            )
    if "teacher" in needs and model.teacher is not None and "teacher" not in provides:
        shapes.append(model_config(find_parent(model.teacher).shape))
    return sum(count_parameters(shape).total for shape in shapes)


def answers(config: Namespace, data: BaseData, world: int) -> Answering | None:
    """Describe what the network answers at once.

    Returns None where it answers nothing, or another engine does, whose memory is its own.
    """
    rollout = config.model.rollout
    if rollout is None or data.longest_prompt is None:
        return None
    engine = rollout.engine
    if engine is not None and not _is_built_in(engine.class_path):
        return None
    prompts = -(-max(size.rows for size in data.step_sizes) // world)
    every = Answering(
        prompts * data.sequences_per_row,
        prompts,
        data.longest_prompt,
        rollout.max_completion_tokens,
    )
    most = None if engine is None else (engine.get("init_args") or {}).get("rows")
    return every if most is None or most >= every.rows else every.fewer(most)


def _is_built_in(class_path: str) -> bool:
    found = import_class_path(class_path, "model.rollout.engine")
    return isinstance(found, type) and issubclass(found, BuiltIn)


def check_memory(net: ModelConfig, layout: Layout, *, ranks_here: int, allow: bool) -> None:
    """Refuse a run whose planned peak its device cannot hold, before anything is built.

    Args:
        net: Shape.
        layout: From `layout_of`.
        ranks_here: Processes that share this machine's memory, where they compute on its CPU.
        allow: Warn instead.

    Raises:
        UserError: Names the peak, the limit and what would make it fit.
    """
    limit = device_memory(layout.device)
    if limit is None:
        return
    limit = limit / (ranks_here if layout.device == "cpu" else 1)
    found = peak(net, layout)
    needed = found.bytes + beside(found.bytes, layout.device)
    if needed <= NEAR * limit:
        return
    what = (
        f"a device needs {needed / GIB:,.1f} GiB at the peak of a step, {_PEAKS[found.phase]},"
        f" and has {limit / GIB:,.1f} GiB"
        + (
            f" for each of {ranks_here} processes"
            if layout.device == "cpu" and ranks_here > 1
            else ""
        )
    )
    if needed <= limit or allow:
        warn(f"{what}: it may run out of memory")
        return
    ways = remedies(net, layout, room(limit, layout.device))
    would = (
        f"it would fit with {', or '.join(ways)}"
        if ways
        else "a smaller network or shorter rows would fit"
    )
    raise UserError(
        f"{what}; {would}. `lit_pretrain plan` shows where it goes; --allow_oom true starts"
        " nevertheless"
    )


def device_memory(device: str) -> float | None:
    """Find the bytes of the GPU, or those that this process may still take of the machine's.

    Returns None if the system does not say.
    """
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    try:
        fields = dict(
            line.split(":", 1)
            for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        )
        available = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        most, used = (
            (group / f"memory.{name}").read_text(encoding="utf-8").strip()
            for name in ("max", "current")
        )
    except OSError:
        return available
    return available if most == "max" else min(available, float(most) - float(used))


def fit_plan(
    config: Namespace, net: ModelConfig, layout: Layout, data: BaseData, *, gpu: str | None
) -> FitPlan:
    """Write in one line what is about to happen.

    Args:
        config: Resolved config.
        net: Its network.
        layout: From `layout_of`.
        data: Its data.
        gpu: The driver's name of the GPU; None on a CPU.
    """
    counts, tokens = count_parameters(net), data.batch_tokens.first(config.max_steps)
    flops = (
        tokens
        * flops_per_token(net, data.seq_len, adapter_parameters=layout.added or None).training
    )
    found = peak(net, layout)
    dtype = peak_dtype(config.trainer.precision, float8=layout.float8)
    foreseen: Expected | None = None
    forecast: list[str] = []
    if (
        data.scaling_laws_apply and config.model.init_from is None
    ):  # laws are of networks trained from nothing on text
        law = expected(counts, tokens, given=config.forecast, tokenizer=data.tokenizer_hash)
        if config.forecast is None and law.outside:
            forecast = [f"loss not forecast ({law.name}: {law.outside[0]})"]
        else:
            foreseen, forecast = law, [f"loss {law.text} expected"]
    elif config.forecast is not None:
        raise UserError(
            "forecast: laws are of networks that are trained from nothing on text; leave it out for"
            " this run"
        )
    parts = [
        f"{counts.total / 1e6:.1f} M parameters ({counts.matmul / 1e6:.1f} M in matrix products)",
        data.batch_line(layout.devices),
        *_mesh(config, layout.devices),
        (
            f"{counted(config.max_steps, 'steps')} = {short(tokens)} tokens ="
            f" {data.epochs(config.max_steps):.2f} epochs"
        ),
        f"{flops:.3g} FLOPs",
        *_hours(gpu, dtype, flops, layout.devices),
        f"memory {found.bytes / GIB:.2f} GiB a device",
        *forecast,
        config.trainer.precision + (f" with {config.model.float8} fp8" if layout.float8 else ""),
    ]
    return FitPlan("plan: " + " | ".join(parts), foreseen)


def devices_line(config: Namespace, devices: int) -> str:
    """Say over how many devices a run is divided, and how.

    Args:
        config: Resolved config.
        devices: Devices over all machines.
    """
    sizes = mesh_of(config, devices)
    if sizes is not None:
        return f"{counted(devices, 'devices')}, mesh {sizes.described}"
    how = {"none": "", "ddp": ", DDP", "fsdp": ", FSDP2"}
    return counted(devices, "devices") + how[sharding_of(config.trainer.strategy, None, devices)]


def _mesh(config: Namespace, devices: int) -> list[str]:
    sizes = None if config.parallel is None else mesh_of(config, devices)
    return [] if sizes is None else [f"mesh {sizes.described}"]


def _hours(gpu: str | None, dtype: str, flops: float, devices: int) -> list[str]:
    device = None if gpu is None else find_device(gpu)
    top = None if device is None else device.peak(dtype)
    if device is None or top is None:
        return []
    share = device.utilization(dtype).value
    return [f"{clock(flops / (top * share * devices))} at {share:.0%} MFU"]
