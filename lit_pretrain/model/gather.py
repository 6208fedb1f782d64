"""Gather: what devices hold of a row's tokens each, put together, with a gradient.

Axes: B rows, T tokens, P devices.
"""

from typing import Any

import torch
from torch import Tensor


def gather_tokens(x_BT: Tensor, group: str, devices: int) -> Tensor:
    """Concatenate the tokens (axis 1) of all devices of a group, one device after the other.

    Its gradient is summed over the devices, and each keeps the sum of its own tokens.

    Args:
        x_BT: (B, T, ...), of the same shape on every device.
        group: Name of the process group.
        devices: Its size, P.

    Returns:
        (B, P T, ...).
    """
    whole: Tensor = _GatherTokens.apply(x_BT, group, devices)  # type: ignore[no-untyped-call]
    return whole


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BT: Tensor, group: str, devices: int) -> Tensor:
        ctx.group, ctx.devices = group, devices
        ops = torch.ops._c10d_functional
        parts = ops.wait_tensor(ops.all_gather_into_tensor(x_BT.contiguous(), devices, group))
        return torch.cat(parts.chunk(devices), dim=1)

    @staticmethod
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Tensor, None, None]:
        ops = torch.ops._c10d_functional
        parts = torch.cat(grad_BT.chunk(ctx.devices, dim=1))
        own = ops.reduce_scatter_tensor(parts, "sum", ctx.devices, ctx.group)
        return ops.wait_tensor(own), None, None
