"""Step matrices with Muon on four gloo ranks, laid out in several ways, and on one process.

It prints a JSON object: for each layout the worst relative error of any matrix and of its momentum
after 20 steps, how far each has moved at least, and which each rank orthogonalised.
"""

import json
import logging
import os
import tempfile
import warnings
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lit_pretrain.optim import MuonAdamW, muon, optimizer

SHAPES: dict[str, tuple[int, ...]] = {
    "wide": (16, 40),
    "tall": (48, 16),
    "square": (24, 24),
    "another": (24, 24),
    "flat": (2, 64),  # fewer rows than ranks
    "odd": (10, 12),
    "stack": (6, 16, 8),
    "cube": (4, 2, 8, 20),
}
TENSOR_PARALLEL = {"wide": 0, "tall": 1, "square": 0, "another": 1, "flat": 0, "odd": 1, "stack": 1}
"""Axes along which matrices are split over two ranks before FSDP splits them."""
LAYOUTS = ("fsdp", "hsdp", "hsdp alone", "fsdp x tp", "levelled fsdp", "levelled hsdp")
PLAIN = MuonAdamW(weight_decay=0.1, cautious=True, momentum_warmup_steps=4)
LEVELLED = MuonAdamW(weight_decay=0.1, momentum_warmup_steps=4, update_beta2=0.9)
STEPS = 20


def drawn(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def whole_net() -> nn.Module:
    net = nn.Module()
    for name, weight in drawn(0).items():
        net.register_parameter(name, nn.Parameter(weight))
    return net


def laid_out(layout: str) -> nn.Module:
    net = whole_net()
    if layout.endswith("fsdp x tp"):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
        for name, axis in TENSOR_PARALLEL.items():
            split = distribute_tensor(getattr(net, name).detach(), mesh["tp"], [Shard(axis)])
            net.register_parameter(name, nn.Parameter(split))
        net.cube = nn.Parameter(distribute_tensor(net.cube.detach(), mesh["tp"], [Replicate()]))
        return cast("nn.Module", fully_shard(net, mesh=mesh["fsdp"]))
    if layout.endswith("fsdp"):
        return cast("nn.Module", fully_shard(net, mesh=init_device_mesh("cpu", (4,))))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "fsdp"))
    return cast("nn.Module", fully_shard(net, mesh=mesh))


def like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Lay a tensor out as a parameter, by torch's own rules."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=parameter.placements)


def train(net: nn.Module, recipe: MuonAdamW) -> tuple[dict[str, Tensor], Any]:
    named = dict(net.named_parameters())
    muons = recipe.build(named.items(), dict.fromkeys(named, "matrix"))
    for step in range(STEPS):
        for name, grad in drawn(100 + step).items():
            named[name].grad = like(named[name], grad)
        muons.step()
    found = dict(named)
    for name, parameter in named.items():
        momentum = found[f"momentum of {name}"] = muons.state[parameter]["momentum_buffer"]
        # What a checkpoint holds is laid out as its parameter is.
        assert getattr(momentum, "placements", None) == getattr(parameter, "placements", None)
        if recipe.update_beta2 is not None:  # which every rank keeps of the whole
            found[f"square of {name}"] = muons.state[parameter]["update_square"]
    return {
        name: (x.full_tensor() if isinstance(x, DTensor) else x).detach()
        for name, x in found.items()
    }, muons


def on_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    muon._precision = lambda device: torch.float32
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    plain, levelled = (train(whole_net(), recipe)[0] for recipe in (PLAIN, LEVELLED))
    report = {}
    for layout in LAYOUTS:
        optimizer._SHARED_FROM["cpu"] = 1000 if layout == "hsdp alone" else 8
        is_levelled = layout.startswith("levelled")
        expected = levelled if is_levelled else plain
        found, muons = train(laid_out(layout), LEVELLED if is_levelled else PLAIN)
        (exchange,) = muons._exchanges.values()
        owned = [number for one in exchange.rounds for number in one.owned]
        owned_by_rank: list[Any] = [None] * 4
        dist.all_gather_object(owned_by_rank, owned)
        report[layout] = {
            "apart": max(
                float((found[name] - x).norm() / x.norm()) for name, x in expected.items()
            ),
            "moved": min(
                float((found[name] - x).norm() / x.norm()) for name, x in drawn(0).items()
            ),
            "owned": owned_by_rank,
        }
    if rank == 0:
        print(json.dumps(report), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads need no farewell


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(on_rank, (f"{folder}/store",), nprocs=4, start_method="fork")
