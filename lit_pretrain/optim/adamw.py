"""AdamW: decoupled weight decay on matrices only, a learning rate per role, in torch's fused kernel."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from .param_groups import split_by_role


@dataclass(frozen=True)
class AdamW:
    """Recipe for `torch.optim.AdamW` with decay groups."""

    lr: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and the output head."""
    decay_embeddings: bool = True
    """Whether embeddings (and value embeddings) decay too. Vectors and scalars never do."""
    lr_scale: dict[str, float] = field(default_factory=dict)
    """Learning-rate multipliers by role, such as {"embedding": 10.0}."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, str]) -> torch.optim.Optimizer:
        """Make the optimizer."""
        groups = []
        for role, parameters in split_by_role(named_parameters, roles).items():
            lr = self.lr * self.lr_scale.get(role, 1.0)
            decays = role in ("matrix", "head") or (self.decay_embeddings and "embedding" in role)
            groups.append({"params": [p for _, p in parameters], "lr": lr, "initial_lr": lr, "role": role,
                           "weight_decay": self.weight_decay if decays else 0.0})
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
