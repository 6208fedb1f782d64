"""Bench of Muon over sharded matrices: one owner for each, relative to all ranks making everything.

    python scripts/bench_muon.py                          # 4 layers × 512 over 2 and 4 gloo ranks
    python scripts/bench_muon.py --width 768 --ranks 4

Both ways step the same matrices in turn, and medians of the slowest rank are printed. More ranks
than cores share the cores, so that the ratio says how much less there is to do in all.
"""

import argparse
import os
import statistics
import tempfile
import time
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_pretrain.optim import MuonAdamW, muon
from lit_pretrain.optim.matrix_exchange import part_of


class Gathered(muon.MuonWithAdamW):
    """Every rank gathers every matrix in its own precision and orthogonalises it."""

    def _step_sharded(self, parameters: Any, moving: Any, method: Any) -> None:
        alike: dict[torch.Size, list[Any]] = {}
        for group, parameter in parameters:
            alike.setdefault(parameter.shape, []).append((group, parameter))
        for shape, members in alike.items():
            together = max(1, muon._most_elements("cpu") // shape.numel())
            for start in range(0, len(members), together):
                part = members[start : start + together]
                stacks = muon._Stacks(
                    [tuple(shape)] * len(part), device=part[0][1].device, method=method
                )
                for (group, parameter), place in zip(part, stacks.places, strict=True):
                    self._momentum(group, parameter, moving[id(group)].momentum)
                    place.copy_(self.state[parameter]["momentum_buffer"].full_tensor())
                for (group, parameter), update in zip(part, stacks.orthogonalize(), strict=True):
                    own = part_of(parameter)
                    muon._apply(group, parameter, own.of(update), moving[id(group)])


def network(layers: int, width: int) -> nn.Module:
    """Make a network of the matrices of some layers, sharded over all ranks."""
    net = nn.Module()
    sides = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    for number, shape in enumerate(sides * layers):
        net.register_parameter(f"matrix_{number}", nn.Parameter(torch.randn(shape)))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return cast("nn.Module", fully_shard(net, mesh=mesh))


def on_rank(rank: int, ranks: int, options: argparse.Namespace, store: str) -> None:
    """Time both ways in turn; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    named = dict(network(options.layers, options.width).named_parameters())
    recipe = MuonAdamW(nesterov=False)
    groups = recipe.build(named.items(), dict.fromkeys(named, "matrix")).param_groups
    ways = [cls([dict(group) for group in groups]) for cls in (Gathered, muon.MuonWithAdamW)]
    seconds: list[list[float]] = [[], []]
    for step in range(options.steps + 1):
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        for way in (0, 1) if step % 2 else (1, 0):
            dist.barrier()
            began = time.perf_counter()
            ways[way].step()
            taken = torch.tensor(time.perf_counter() - began)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            seconds[way].append(float(taken))
    if rank == 0:
        gathered, owned = (statistics.median(each[1:]) for each in seconds)  # the first warms up
        print(
            f"{ranks} ranks: gathered {gathered:.3f} s, owned {owned:.3f} s,"
            f" ratio {owned / gathered:.2f}",
            flush=True,
        )
    dist.barrier()
    os._exit(0)  # gloo's threads need no farewell


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--steps", type=int, default=9, help="of each way, beside the first")
    options = parser.parse_args()
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            given = (ranks, options, f"{folder}/store")
            mp.spawn(on_rank, given, nprocs=ranks)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    main()
