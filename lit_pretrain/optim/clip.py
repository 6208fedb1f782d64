"""Clipping: scale gradients by the global token count and bound their norm.

Both happen in one pass, without a host synchronisation.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_Groups = list[list[Tensor]]


def _groups(parameters: Iterable[Tensor]) -> _Groups:
    """Group the gradients that one foreach kernel can take: same device, mesh and placements."""
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            key = grad.device, getattr(grad, "device_mesh", None), getattr(grad, "placements", None)
            groups.setdefault(key, []).append(grad)
    return list(groups.values())


def _norm(groups: _Groups) -> Tensor:
    norms: list[Tensor] = []
    for grads in groups:
        # fp32 (or wider): the norm of many bf16 norms would carry three digits.
        dtype = torch.promote_types(grads[0].dtype, torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2.0, dtype)))
        norms.append(
            norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        )  # a DTensor holds this rank's part only
    if not norms:
        return torch.zeros(())
    return (
        norms[0]
        if len(norms) == 1
        else torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    )


@torch.no_grad()
def global_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the L2 norm of all gradients together, over every shard on every rank.

    Plain and sharded parameters may be mixed.

    Args:
        parameters: Parameters; those without a gradient are skipped.

    Returns:
        A scalar on the device of the gradients, at least fp32. Not finite if a gradient is not: the
        caller decides when to look.
    """
    return _norm(_groups(parameters))


@torch.no_grad()
def scale_and_clip_(
    parameters: Iterable[Tensor], scale: Tensor | float, max_norm: float | None
) -> Tensor:
    """Multiply gradients by `scale` and bound their global norm by `max_norm`, in one pass.

    Args:
        parameters: Parameters; those without a gradient are skipped.
        scale: Factor of every gradient, such as one over the number of valid tokens of the
            optimizer step.
        max_norm: Largest norm of the scaled gradients; None leaves it free.

    Returns:
        The norm of the scaled gradients before clipping, a scalar on their device. If it is not
        finite the gradients are not either; nothing is checked here, because looking at a value
        waits for the device.
    """
    groups = _groups(parameters)
    norm = _norm(groups) * scale
    multiplier = torch.as_tensor(scale, dtype=norm.dtype, device=norm.device)
    if max_norm is not None:
        # 1e-6 as in torch.nn.utils.clip_grad_norm_, so that the two agree.
        multiplier = multiplier * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for grads in groups:
        torch._foreach_mul_(grads, multiplier.to(grads[0].device))
    return norm
