"""Muon: momentum, orthogonalised, for matrices; AdamW for the rest; as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .orthogonalize import coefficients, orthogonalize_

LrScaling = Literal["original", "match_rms_adamw"]
_STACK_BYTES = 64 * 2**20


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps the groups that say `algorithm="muon"` with Muon and those that say `"adamw"` with AdamW.

    State and groups hold tensors and primitives only, so checkpoints load with `weights_only=True`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if any(parameter.grad is not None for parameter in group["params"]):
                {"muon": self._muon, "adamw": self._adamw}[group["algorithm"]](group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        group["step"] += 1
        momentum = group["momentum"]
        if group["step"] < group["momentum_warmup_steps"]:
            done = group["step"] / group["momentum_warmup_steps"]
            momentum = group["momentum_start"] + (momentum - group["momentum_start"]) * done
        stacks: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows, columns = parameter.shape[-2:]
                stacks.setdefault((min(rows, columns), max(rows, columns)), []).append(parameter)
        polynomials = coefficients(group["orthogonalization"], group["iterations"])
        for (short, long), parameters in stacks.items():
            most = max(1, _STACK_BYTES // (2 * short * long))
            for start in range(0, len(parameters), most):
                self._muon_stack(group, parameters[start : start + most], momentum, polynomials)

    def _muon_stack(self, group: dict[str, Any], parameters: list[Tensor], momentum: float, polynomials: Any) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, grads, 1.0 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        rows, columns = parameters[0].shape[-2:]
        stack = torch.empty(len(parameters), min(rows, columns), max(rows, columns), dtype=torch.bfloat16, device=grads[0].device)
        for place, update in zip(stack.unbind(), updates):
            place.copy_(update if update.shape[-2] <= update.shape[-1] else update.mT)
        orthogonal = orthogonalize_(stack, polynomials)
        for parameter, update in zip(parameters, orthogonal.unbind()):
            tall = parameter.shape[-2] > parameter.shape[-1]
            ratio = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
            if group["lr_scaling"] == "match_rms_adamw":
                ratio = 0.2 * max(parameter.shape[-2:]) ** 0.5
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(update.mT if tall else update, alpha=-group["lr"] * ratio)

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device if group["fused"] else None)
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
