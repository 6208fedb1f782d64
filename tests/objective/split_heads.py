"""Compute objectives with a vocabulary that is split over two gloo ranks, and with a whole one.

It prints a JSON object: for each objective the relative errors of its value, of the gradient of the
hidden states (a sum over the ranks) and of the head's (a part on each).
"""

import json
import logging
import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch, LabelledBatch, PolicyBatch, PreferenceBatch
from lit_pretrain.objective import CPO, DPO, GRPO, KTO, ORPO, CrossEntropy, LabelScores, SimPO

B, T, D, V = 4, 12, 8, 32
PAIRS, VERDICTS, ANSWERS, TEXT = "pairs", "verdicts", "answers", "text"
CASES: dict[str, tuple[Any, str]] = {
    "CrossEntropy": (CrossEntropy(z_loss=1e-3, label_smoothing=0.1), TEXT),
    "DPO": (DPO(beta=0.5, sft_weight=0.3), PAIRS),
    "DPO ipo": (DPO(beta=0.5, variant="ipo"), PAIRS),
    "CPO": (CPO(beta=0.5), PAIRS),
    "ORPO": (ORPO(beta=0.5), PAIRS),
    "SimPO": (SimPO(), PAIRS),
    "KTO": (KTO(beta=0.5), VERDICTS),
    "GRPO": (GRPO(beta=0.1), ANSWERS),
}


def batch_of(kind: str) -> Any:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, V, (B, T), generator=generator)
    lengths = torch.tensor([12, 9, 7, 11])[:, None]
    place = torch.arange(T)
    doc = (place >= lengths).int()
    learned = (place >= 2) & (place < lengths - 1)
    labels = torch.where(learned, tokens.roll(-1, 1), IGNORE_INDEX)
    rows = tokens, labels, doc, torch.zeros(B).long()
    twice = torch.tensor([0, 1, 0, 1])
    reference = -20 * torch.rand(B, generator=generator)
    if kind == PAIRS:
        return PreferenceBatch(*rows, twice, ref_logp_B=reference)
    if kind == VERDICTS:
        good = torch.tensor([True, False, True, False])
        return LabelledBatch(*rows, twice, good, ref_logp_B=reference)
    if kind == ANSWERS:
        advantage = torch.tensor([1.0, -1.0, 0.5, -0.5])
        old = torch.where(learned, -3 - torch.rand(B, T, generator=generator), 0.0)
        return PolicyBatch(
            *rows, torch.arange(B), advantage, advantage, torch.tensor([0, 0, 1, 1]),
            torch.zeros(B).bool(), old_logp_BT=old, ref_logp_BT=old - 0.1 * learned,
        )  # fmt: skip
    return Batch(*rows, torch.arange(B))


def computed(objective: Any, batch: Any, head: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the terms and the gradients of hidden states and head."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(B, T, D, generator=generator).requires_grad_()
    scores = LabelScores(hidden, head, batch.labels_BT, logit_softcap=15.0)
    total, _, _ = objective(scores, batch)
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return total.detach(), hidden.grad, head.grad


def on_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh, report = init_device_mesh("cpu", (2,)), {}
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    for name, (objective, kind) in CASES.items():
        batch = batch_of(kind)
        expected = computed(objective, batch, weight.clone().requires_grad_())
        head = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
        total, hidden, part = computed(objective, batch, head)
        dist.all_reduce(hidden)
        found = total, hidden, part.full_tensor()
        report[name] = [
            float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)
        ]
    if rank == 0:
        print(json.dumps(report), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads need no farewell


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(on_rank, (f"{folder}/store",), nprocs=2, start_method="fork")
