"""MomentumSGD: an optimizer of torch's, in a file outside lit_pretrain."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lit_pretrain.optim import OptimizerRecipe, decays, split_by_role
from lit_pretrain.roles import Role


@dataclass(frozen=True)
class MomentumSGD(OptimizerRecipe):
    """Recipe for `torch.optim.SGD`, with a learning rate of its own for matrices."""

    lr: float = 0.1
    """Peak learning rate."""
    matrix_lr: float = 0.5
    """Peak learning rate of matrices."""
    weight_decay: float = 0.01
    """Decay of matrices, head and tables."""

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build it with one group per role."""
        groups = []
        for role, parameters in split_by_role(named_parameters, roles).items():
            lr = self.matrix_lr if role == "matrix" else self.lr
            decay = self.weight_decay if decays(role, embeddings=True) else 0.0
            groups.append(
                {
                    "params": parameters,
                    "role": role,
                    "lr": lr,
                    "initial_lr": lr,
                    "weight_decay": decay,
                }
            )
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9)

    def moments(self, role: Role) -> int:
        """Count one: the momentum."""
        return 1
