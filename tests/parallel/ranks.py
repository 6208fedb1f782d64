"""Train tiny networks on a few gloo ranks and on one process, and print how far they are apart.

`python ranks.py MESH CASE...` forks as many ranks as the mesh has devices; a mesh is written
`dp_shard=2,tp=2`, the cases are those of `CASES`. It prints a JSON object: for each case the
largest difference of the losses, and the worst relative error of any gradient and of any weight.
"""

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lit_pretrain.adapter import LoRA
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.gather import RowParts
from lit_pretrain.model.parameter_scales import parameter_scales, transferred_shape
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.optim import AdamW, MuonAdamW, muon
from lit_pretrain.optim.clip import scale_and_clip_
from lit_pretrain.optim.transferred_groups import transfer_groups_
from lit_pretrain.parallel.mesh import Mesh
from lit_pretrain.parallel.strategy import shard_
from lit_pretrain.roles import parameter_roles
from lit_pretrain.step_size import MeshSizes
from lit_pretrain.transfer import StepFactors, Transfer

ROWS, T, V = 8, 32, 64
EVERYTHING: dict[str, Any] = {
    "value_embeddings": "alternate", "residual_scalars": True, "embed_norm": True,
    "qkv_bias": True, "logit_softcap": 15.0,
}  # fmt: skip
PAIRS: dict[str, Any] = {"bigram_rows": 96, "smear": True}
CASES: dict[str, dict[str, Any]] = {
    "untied": {"steps": 20},
    "tied": {"tie_embeddings": True, "activation": "relu2"},
    "everything": EVERYTHING,
    "muon": {"recipe": MuonAdamW()},
    "pairs": PAIRS,
    "pairs and scalars": PAIRS | EVERYTHING,
    "levelled": {"recipe": MuonAdamW(update_beta2=0.9)},
    "learned": {
        "position": "learned",
        "norm": "layernorm",
        "sliding_window": 12,
        "window_pattern": "SL",
    },
    "matmul": {"attention": "matmul", "attn_softcap": 20.0},
    "sdpa": {"attention": "sdpa", "sliding_window": 12, "window_pattern": "SL"},
    "checkpointed": {"checkpointing": True},
    "compiled": {"backend": "aot_eager"},
    "transferred": {
        "transfer": Transfer(16, 1, base_n_kv_head=2),
        "tie_embeddings": True,
        "recipe": MuonAdamW(),
    },
    "z": {"z_loss": 1e-3, "label_smoothing": 0.05},
    "lora": {
        "adapter": LoRA(rank=4, rslora=True),
        "qkv_bias": True,
        "recipe": AdamW(lr=0.03),
    },
}
"""Shapes, and what else differs from a plain run."""


def micro_batches(step: int, rank: int, replicas: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tokens, labels and documents of the two micro-batches of a replica."""
    generator = torch.Generator().manual_seed(step)
    begin, stride = torch.randint(0, V, (2, ROWS, 1), generator=generator)
    tokens = (begin + (1 + stride % 3) * torch.arange(T + 1)) % V
    doc = (torch.rand(ROWS, T, generator=generator) < 0.1).cumsum(1).int()
    labels = tokens[:, 1:].clone()
    labels[torch.rand(ROWS, T, generator=generator) < 0.2] = -100
    share = ROWS // replicas
    own = slice(rank * share, (rank + 1) * share)
    yield from zip(
        *(x[own].chunk(2) for x in (tokens[:, :-1].contiguous(), labels, doc)), strict=True
    )


def fill(net: Transformer) -> None:
    """Draw weights; gains, biases and gates too, which begin as constants."""
    net.reset_parameters(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def train(
    case: dict[str, Any], mesh: Mesh | None
) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """Train as a stage does; return the losses, the first gradients and the last weights."""
    case = dict(case)
    adapter: LoRA | None = case.pop("adapter", None)

    def fill_with_adapter(net: Transformer) -> None:
        if adapter is not None:
            adapter.apply(net)
        fill(net)

    recipe = case.pop("recipe", AdamW(lr=0.003))
    checkpointing, backend = case.pop("checkpointing", False), case.pop("backend", None)
    steps = case.pop("steps", 3)
    terms = {name: case.pop(name) for name in ("z_loss", "label_smoothing") if name in case}
    shape = {
        "vocab_size": V, "n_layer": 2, "width": 32, "n_head": 4, "n_kv_head": 2, "ffn_width": 64,
        "max_seq_len": T, "qk_norm": True,
    }  # fmt: skip
    transfer = case.pop("transfer", None)
    config = transferred_shape(ModelConfig(**(shape | case)), transfer)
    with torch.device("meta" if mesh else "cpu"):
        net = Transformer(config)
    net.checkpoint_activations(checkpointing)
    if mesh is None:
        fill_with_adapter(net)
    else:
        if adapter is not None:
            adapter.apply(net)
        shard_(net, mesh.whole, device=torch.device("cpu"), fill=fill_with_adapter)
        if mesh.cp is not None:
            group = mesh.cp.get_group().group_name
            net.parts = RowParts(group, mesh.cp.size(), mesh.cp.get_local_rank())
    if backend is not None and mesh is not None:
        net.compile_blocks(backend)
    named, roles = list(net.named_parameters()), parameter_roles(net)
    optimizer = recipe.build([(name, p) for name, p in named if p.requires_grad], roles)
    if transfer is not None:
        scales = parameter_scales(config, transfer, roles)
        transfer_groups_(optimizer, recipe, named, scales, StepFactors())
    rank, replicas = (mesh.batch.get_local_rank(), mesh.batch.size()) if mesh else (0, 1)
    losses, grads = [], []
    for step in range(steps):
        optimizer.zero_grad()
        total, count = torch.zeros(()), torch.zeros(())
        for tokens, labels, doc in micro_batches(step, rank, replicas):
            if net.parts is not None:
                labels = net.parts.take(labels)
            scores = LabelScores(
                net(tokens, doc), net.head_weight, labels, logit_softcap=config.logit_softcap
            )
            loss, nll = scores.cross_entropy(**terms)
            loss.backward()
            total, count = total + nll.sum(), count + (labels != -100).sum()
        if mesh:
            dist.all_reduce(total, group=mesh.loss.get_group())
            dist.all_reduce(count, group=mesh.loss.get_group())
        scale_and_clip_(net.parameters(), (mesh.loss.size() if mesh else 1) / count, 1.0)
        if step == 0:
            grads = [whole(p.grad) for p in net.parameters() if p.grad is not None]
        optimizer.step()
        losses.append(float(total / count))
    return losses, grads, [whole(p) for p in net.parameters()]


def whole(x: Any) -> Tensor:
    """Gather a tensor."""
    tensor: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return tensor.detach().clone()


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the worst relative error."""
    assert len(found) == len(expected)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def on_rank(rank: int, sizes: MeshSizes, names: list[str], store: str) -> None:
    """Run all cases on one rank; the first one compares and prints."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    muon._precision = lambda device: torch.float32
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=sizes.devices
    )
    mesh, report = Mesh.make(sizes, "cpu"), {}
    for name in names:
        found = train(CASES[name], mesh)
        if rank == 0:
            expected = train(CASES[name], None)
            report[name] = {
                "losses": max(abs(a - b) for a, b in zip(found[0], expected[0], strict=True)),
                "gradients": apart(found[1], expected[1]),
                "weights": apart(found[2], expected[2]),
                "fell": expected[0][0] - expected[0][-1],
            }
        dist.barrier()
    if rank == 0:
        print(json.dumps(report), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads need no farewell


if __name__ == "__main__":
    given = dict(part.split("=") for part in sys.argv[1].split(","))
    axes = MeshSizes(**{name: int(size) for name, size in given.items()})
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            on_rank,
            (axes, sys.argv[2:], f"{folder}/store"),
            nprocs=axes.devices,
            start_method="fork",
        )
