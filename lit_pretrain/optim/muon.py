"""Muon for matrices, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._functional import adamw

from .param_groups import split_by_role


@dataclass(frozen=True)
class MuonAdamW:
    """Recipe."""

    matrix_lr: float = 0.02
    """Learning rate of Muon."""
    embedding_lr: float = 0.3
    """AdamW learning rate of the token embedding."""
    value_embedding_lr: float = 0.3
    """AdamW learning rate of value embeddings."""
    head_lr: float = 0.004
    """AdamW learning rate of the output head."""
    vector_lr: float = 0.01
    """AdamW learning rate of norms and biases."""
    scalar_lr: float = 0.1
    """AdamW learning rate of scalars."""
    betas: tuple[float, float] = (0.8, 0.95)
    """AdamW's moments."""
    eps: float = 1e-10
    """AdamW's epsilon."""
    momentum: float = 0.95
    """Muon's Nesterov momentum."""
    weight_decay: float = 0.0
    """Muon's decoupled weight decay."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, str]) -> torch.optim.Optimizer:
        """Make the optimizer."""
        groups: list[dict[str, Any]] = []
        for role, named in split_by_role(named_parameters, roles).items():
            lr = getattr(self, f"{role}_lr")
            groups.append({"params": [p for _, p in named], "lr": lr, "initial_lr": lr, "role": role, "muon": role == "matrix"})
        return _MuonAdamW(groups, dict(lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay, betas=self.betas, eps=self.eps))


class _MuonAdamW(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(state["momentum_buffer"], group["momentum"])
            update = _zeropower_via_newtonschulz(update, (3.4445, -4.7750, 2.0315), 5, 1e-7)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-_adjust_lr(group["lr"], "original", p.shape))

    def _adamw(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p].update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        s = [self.state[p] for p in params]
        adamw(
            params, [p.grad for p in params], [x["exp_avg"] for x in s], [x["exp_avg_sq"] for x in s], [],
            [x["step"] for x in s], fused=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=0.0, eps=group["eps"], maximize=False,
        )
