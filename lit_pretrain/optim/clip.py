"""Clipping: scale gradients by the global token count and bound their norm, in one pass and without a host sync."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def _by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            groups.setdefault((getattr(grad, "device_mesh", None), getattr(grad, "placements", None)), []).append(grad)
    return list(groups.values())


def _norm(groups: list[list[Tensor]]) -> Tensor:
    norms = [get_total_norm(grads) for grads in groups]
    full = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in full])) if full else torch.zeros(())


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, over every rank."""
    return _norm(_by_mesh(parameters))


@torch.no_grad()
def scale_and_clip_(parameters: Iterable[nn.Parameter], scale: Tensor | float, max_norm: float | None) -> Tensor:
    """Multiply gradients by `scale`, then bound their global norm; returns the norm of the scaled gradient before clipping."""
    groups = _by_mesh(parameters)
    norm = _norm(groups) * scale
    multiplier = norm.new_ones(()) * scale
    if max_norm is not None:
        multiplier = multiplier * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for grads in groups:
        torch._foreach_mul_(grads, multiplier)
    return norm
