"""Auto parallel: `parallel: auto` divides a run over its GPUs as `plan --layout auto` would."""

from __future__ import annotations

import torch
from jsonargparse import Namespace

from lit_pretrain.cli.train.fit_plan import layout_of
from lit_pretrain.cli.train.precision import peak_dtype
from lit_pretrain.cli.train.resolve import (
    adapter_of,
    instantiate,
    net_of,
    optimizer_of,
    settings_of,
)
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.parallel.mesh import Parallel
from lit_pretrain.parallel.strategy import parallel_of
from lit_pretrain.scaling.flops import find_device
from lit_pretrain.scaling.layout_search import LayoutSearch, search_layouts
from lit_pretrain.scaling.memory import Layout
from lit_pretrain.scaling.step_time import Cluster, MatrixUpdate
from lit_pretrain.step_size import counted

AUTO = "auto"
"""What `parallel` is set to, to have its sizes chosen."""


def gpu_name(accelerator: object) -> str | None:
    """Return the driver's name of the GPU that a run trains on; None where it trains on none."""
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()


def find_layouts(
    config: Namespace,
    net: ModelConfig,
    base: Layout,
    cluster: Cluster,
    *,
    devices: int,
    limit: float,
) -> LayoutSearch:
    """Search the layouts of a run: this is what `parallel: auto` and `plan --layout auto` share.

    Args:
        config: Resolved; decides what the optimizer does, and what may be split.
        net: Its network.
        base: Its layout on one device.
        cluster: The devices and their links.
        devices: How many there are.
        limit: Bytes of memory of each.
    """
    objective = instantiate(config.model.objective, "model.objective")
    # Nobody knows how to split the matrices of an adapter or of a user's block.
    whole = adapter_of(config) is not None or net.block is not None
    return search_layouts(
        net, base, cluster, devices=devices, limit=limit,
        update=MatrixUpdate(net, optimizer_of(config).update_work),
        splits=objective.splits_vocabulary and objective.splits_rows and not whole,
    )  # fmt: skip


def choose_parallel(config: Namespace, data: BaseData, devices: int) -> str:
    """Put the fastest layout that fits into a config: mesh, micro-batch, activation checkpointing.

    All ranks choose the same, because nothing but the config and the kind of device decides.

    Args:
        config: Resolved, but for `parallel`, which is `auto`.
        data: Its data; gets the micro-batch.
        devices: Devices over all machines.

    Returns:
        A line that says what was chosen.

    Raises:
        UserError: The run is not pretraining on GPUs whose speed is known, `trainer.strategy` says
            how it is divided, or nothing fits.
    """
    parallel_of(config.trainer.strategy, Parallel())
    config.parallel = None
    name = gpu_name(config.trainer.accelerator)
    device = None if name is None else find_device(name)
    if device is None:
        raise UserError(
            "parallel=auto computes how long a step takes on GPUs that `plan --device` knows, and"
            f" this run trains on {name or 'none'}: give the sizes instead, such as"
            " --parallel.dp_shard auto, which shards over all devices"
        )
    net, base = net_of(config), layout_of(config, data, 1)
    if base.frozen or base.added or base.answering is not None:
        raise UserError(
            "parallel=auto knows the time of a step of pretraining alone, and this run has an"
            " adapter, another network beside it, or answers of its own: give the sizes instead,"
            " such as --parallel.dp_shard auto"
        )
    cluster = Cluster.of(
        device,
        peak_dtype(config.trainer.precision, float8=config.model.float8 is not None),
        machine=devices // int(config.trainer.num_nodes),
    )
    found = find_layouts(config, net, base, cluster, devices=devices, limit=device.memory)
    best = found.fitting[0]
    rows, kept = best.layout.rows // best.layout.group, best.layout.checkpointing
    if devices > 1:
        sizes = best.axes._asdict() | {"ep": 1, "pp": 1}
        config.parallel = Namespace(**sizes)  # type: ignore[no-untyped-call]  # jsonargparse
    config.model.activation_checkpointing = kept
    data.micro_batch_size = settings_of(config.data)["micro_batch_size"] = rows
    mesh = f"mesh {best.axes.described}, " if devices > 1 else ""
    return (
        f"parallel=auto: {mesh}{counted(rows, 'rows')} a device, activation checkpointing"
        f" {str(kept).lower()}: the fastest of {found.tried:,} layouts by `plan --layout auto`"
    )
