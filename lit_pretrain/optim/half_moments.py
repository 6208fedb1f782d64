"""Half moments: an optimizer's moments in bf16, beside weights that stay in fp32.

bf16 has eight bits of precision: a moving average that is rounded to the nearest value stands still
as soon as what a step adds is less than half of the last bit, which with betas above 0.998 it
always is. So what is stored is rounded up or down at random, with the remainder as the probability:
right on average. Steps are made from values before they are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

_LOW_BITS = 16
"""Bits of fp32 that bf16 lacks."""


def store_moment_(state: dict[str, Any], name: str, value: Tensor, noise: torch.Generator) -> None:
    """Round what this rank holds of a moment to bf16, at random.

    Args:
        state: Of a parameter; it has the moment in bf16.
        name: Of the moment.
        value: In fp32.
        noise: Source of randomness, on the device of the value.
    """
    bits = value.view(torch.int32)
    drawn = torch.randint(
        1 << _LOW_BITS, bits.shape, dtype=torch.int32, device=bits.device, generator=noise
    )
    # Sign and magnitude: what is added to the bits moves the value away from zero, if at all.
    drawn.add_(bits).bitwise_and_(-1 << _LOW_BITS)
    local(state[name]).copy_(drawn.view(torch.float32))


def read_moment(state: dict[str, Any], name: str, parameter: Tensor) -> Tensor:
    """Return what this rank holds of a moment in fp32, zero at first.

    torch restores moments in the type of their parameter; they go back to bf16 here.
    """
    if name not in state:
        state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
    elif state[name].dtype != torch.bfloat16:
        state[name] = state[name].to(torch.bfloat16)
    return local(state[name]).float()


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return cast("Any", tensor).to_local() if hasattr(tensor, "device_mesh") else tensor


class MomentNoise:
    """Random numbers that follow from the step and the parameter alone.

    Copies of a network draw the same, and a step that is computed again does, too.

    Args:
        optimizer: Whose parameters are numbered.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._numbers: dict[int, int] = {}
        self._made: dict[torch.device, torch.Generator] = {}

    def at(self, step: int, parameter: Tensor) -> torch.Generator:
        """Return the source for one parameter in one step."""
        if id(parameter) not in self._numbers:
            every = (p for group in self._optimizer.param_groups for p in group["params"])
            self._numbers = {id(one): number for number, one in enumerate(every)}
        device = parameter.device
        if device not in self._made:
            self._made[device] = torch.Generator(device)
        return self._made[device].manual_seed((step << 20) + self._numbers[id(parameter)])


def step_adamw_(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    noise: MomentNoise,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step parameters by AdamW (Loshchilov & Hutter 2019), with moments in bf16."""
    for parameter, state in zip(parameters, states, strict=True):
        weight, grad = local(parameter), local(cast("Tensor", parameter.grad)).float()
        if "step" not in state:
            state["step"] = torch.zeros(())
        state["step"] += 1
        step = int(state["step"])
        source = noise.at(step, parameter)
        first = read_moment(state, "exp_avg", parameter).lerp_(grad, 1.0 - betas[0])
        second = read_moment(state, "exp_avg_sq", parameter).mul_(betas[1])
        second.addcmul_(grad, grad, value=1.0 - betas[1])
        store_moment_(state, "exp_avg", first, source)
        store_moment_(state, "exp_avg_sq", second, source)
        second.sqrt_().div_(math.sqrt(1.0 - betas[1] ** step)).add_(eps)
        weight.mul_(1.0 - lr * weight_decay)
        weight.addcdiv_(first, second, value=-lr / (1.0 - betas[0] ** step))


class HalfAdamW(torch.optim.Optimizer):
    """AdamW with moments in bf16; its state has the names of `torch.optim.AdamW`'s.

    Args:
        groups: Parameter groups, each with lr and weight_decay.
        betas: Decay per step of the first and the second moment.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps})
        self._noise = MomentNoise(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: Re-evaluates the network, if given.

        Returns:
            What `closure` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            step_adamw_(
                parameters, [self.state[parameter] for parameter in parameters], self._noise,
                lr=group["lr"], betas=group["betas"], eps=group["eps"],
                weight_decay=group["weight_decay"],
            )  # fmt: skip
        return loss
