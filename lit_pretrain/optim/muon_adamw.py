"""MuonAdamW: the recipe that gives each role of parameter its algorithm and learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lit_pretrain.errors import UserError
from lit_pretrain.optim.optimizer import (
    OptimizerRecipe,
    can_fuse,
    check_adamw,
    check_not_negative,
    decays,
    split_by_role,
)
from lit_pretrain.roles import ROLES, Role

if TYPE_CHECKING:
    import torch
    from torch import nn

LrScaling = Literal["original", "match_rms_adamw"]
Orthogonalization = Literal["polar_express", "newton_schulz"]


@dataclass(frozen=True)
class MuonAdamW(OptimizerRecipe):
    """Recipe for Muon (Jordan et al. 2024) on matrices and AdamW on everything else."""

    matrix_lr: float = 0.02
    """Peak learning rate of matrices (Muon); see `lr_scaling`."""
    embedding_lr: float = 0.3
    """Peak learning rate of token (and position) embeddings (AdamW)."""
    value_embedding_lr: float = 0.3
    """Peak learning rate of value embeddings (AdamW)."""
    head_lr: float = 0.004
    """Peak learning rate of the output head (AdamW)."""
    vector_lr: float = 0.01
    """Peak learning rate of norms and biases (AdamW)."""
    scalar_lr: float = 0.1
    """Peak learning rate of scalars (AdamW)."""
    adapter_lr: float = 2e-4
    """Peak learning rate of the factors of low-rank updates (AdamW): one of them begins at
    zero, which has no orthogonal part.
    """
    betas: tuple[float, float] = (0.8, 0.95)
    """Decay per step of AdamW's first and second moment."""
    eps: float = 1e-10
    """Added to the root of AdamW's second moment."""
    adamw_weight_decay: float = 0.0
    """Decoupled weight decay of embeddings and head, multiplied by their learning rate. Vectors
    and scalars never decay.
    """
    momentum: float = 0.95
    """Momentum of Muon, an exponential average of the gradients."""
    momentum_start: float = 0.85
    """Momentum at the first step."""
    momentum_warmup_steps: int = 300
    """Optimizer steps over which the momentum rises from `momentum_start` to `momentum`; 0 for
    none.
    """
    nesterov: bool = True
    """Whether Muon looks ahead by one step of momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, multiplied by their learning rate (before
    `lr_scaling`).
    """
    cautious: bool = False
    """Whether weight decay is withheld from weights that the update moves away from zero (Chen
    et al. 2025).
    """
    lr_scaling: LrScaling = "original"
    """original: times sqrt(max(1, rows / columns)) (Jordan et al. 2024). match_rms_adamw: times 0.2
    * sqrt(max(rows, columns)), so that AdamW's rates and decay carry over (Liu et al. 2025).
    """
    orthogonalization: Orthogonalization = "polar_express"
    """polar_express: coefficients that change from iteration to iteration (Amsel et al. 2025).
    newton_schulz: the fixed ones of Jordan et al. (2024), as in `torch.optim.Muon`.
    """
    iterations: int = 5
    """Iterations of the orthogonalisation."""

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.eps, where="MuonAdamW")
        check_not_negative(
            "MuonAdamW",
            **{f"{role}_lr": getattr(self, f"{role}_lr") for role in ROLES},
            weight_decay=self.weight_decay,
            adamw_weight_decay=self.adamw_weight_decay,
        )
        for name in ("momentum", "momentum_start"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(
                    f"MuonAdamW: {name} must lie in [0, 1), found {getattr(self, name)}."
                )
        if self.momentum_warmup_steps < 0:
            raise UserError(
                "MuonAdamW: momentum_warmup_steps must be zero or positive, found"
                f" {self.momentum_warmup_steps}."
            )
        # The polynomials of Polar Express are known for these numbers of iterations only.
        known = (3, 4, 5)
        if self.iterations < 1 or (
            self.orthogonalization == "polar_express" and self.iterations not in known
        ):
            raise UserError(
                f"MuonAdamW: iterations={self.iterations} is not possible with"
                f" {self.orthogonalization}; use 3, 4 or 5, or any positive number with"
                " orthogonalization: newton_schulz."
            )

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build one optimizer whose groups name their algorithm."""
        from lit_pretrain.optim.muon import MuonWithAdamW

        groups: list[dict[str, Any]] = []
        for role, parameters in split_by_role(named_parameters, roles).items():
            lr: float = getattr(self, f"{role}_lr")
            group: dict[str, Any] = {"params": parameters, "role": role, "lr": lr, "initial_lr": lr}
            if role == "matrix":
                group |= {
                    "algorithm": "muon",
                    "step": 0,
                    "momentum": self.momentum,
                    "momentum_start": self.momentum_start,
                    "momentum_warmup_steps": self.momentum_warmup_steps,
                    "nesterov": self.nesterov,
                    "weight_decay": self.weight_decay,
                    "cautious": self.cautious,
                    "lr_scaling": self.lr_scaling,
                    "orthogonalization": self.orthogonalization,
                    "iterations": self.iterations,
                }
            else:
                group |= {
                    "algorithm": "adamw",
                    "betas": self.betas,
                    "eps": self.eps,
                    "weight_decay": self.adamw_weight_decay
                    if decays(role, embeddings=True)
                    else 0.0,
                    "fused": can_fuse(parameters),
                }
            groups.append(group)
        return MuonWithAdamW(groups)

    def moments(self, role: Role) -> int:
        """Count one moment for a matrix (Muon's momentum) and two for the rest (AdamW)."""
        return 1 if role == "matrix" else 2
