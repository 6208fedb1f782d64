"""Score head: the bias-free row that turns a hidden state into a reward."""

from pathlib import Path
from typing import Optional

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lit_pretrain.checkpoint.find import resolve
from lit_pretrain.checkpoint.hf_import import is_hf_folder
from lit_pretrain.checkpoint.weights import read_score

STD = 0.02
"""Deviation of its first weights, that of transformers' classification heads."""


def make_score_head(
    width: int, *, seed: int, init_from: Optional[str], mesh: Optional[DeviceMesh], device: torch.device
) -> tuple[nn.Linear, bool]:
    """The head, and whether its weights are those of the parent: a reward model goes on, any other parent gets a new head."""
    head = nn.Linear(width, 1, bias=False)
    stored = None if init_from is None or is_hf_folder(Path(init_from)) else read_score(resolve(init_from))
    with torch.no_grad():
        if stored is not None:
            head.weight.copy_(stored)
        else:
            # A seed of its own: the network's first weights must not depend on whether there is a head.
            head.weight.normal_(0.0, STD, generator=torch.Generator().manual_seed(seed + 1))
    if mesh is not None:
        fully_shard(head.to(device), mesh=mesh["data_parallel"])
    return head, stored is not None
