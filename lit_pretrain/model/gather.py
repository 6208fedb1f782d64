"""Gather: what devices hold of a row's tokens each, put together, with a gradient.

Axes: B rows, T tokens, P devices.
"""

from dataclasses import dataclass
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
    whole: Tensor = _GatherTokens.apply(x_BT, group, devices)  # type: ignore[no-untyped-call]  # torch's own
    return whole


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BT: Tensor, group: str, devices: int) -> Tensor:
        ctx.group, ctx.devices = group, devices
        ops = torch.ops._c10d_functional
        # Functional collectives, which a compiled block can trace; they join along the first axis.
        parts = ops.wait_tensor(ops.all_gather_into_tensor(x_BT.contiguous(), devices, group))
        return torch.cat(parts.chunk(devices), dim=1)

    @staticmethod
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Tensor, None, None]:
        ops = torch.ops._c10d_functional
        # The parts one after the other along the first axis, which is the one that is divided.
        parts = torch.cat(grad_BT.chunk(ctx.devices, dim=1))
        own = ops.reduce_scatter_tensor(parts, "sum", ctx.devices, ctx.group)
        return ops.wait_tensor(own), None, None


@dataclass(frozen=True)
class RowParts:
    """Which tokens of every row this device holds: context parallelism.

    A row is cut into two chunks for each of P devices. Device r holds chunk r from the front and
    chunk r from the back, so that in undivided rows all devices attend to as many keys.
    """

    group: str
    """Name of the process group of the devices that share rows."""
    devices: int
    rank: int

    def chunks(self, length: int) -> tuple[slice, slice]:
        """Return the columns of the two chunks in a row of `length` tokens."""
        size, back = length // (2 * self.devices), 2 * self.devices - 1 - self.rank
        return (
            slice(self.rank * size, (self.rank + 1) * size),
            slice(back * size, (back + 1) * size),
        )

    def take(self, x_BT: Tensor) -> Tensor:
        """Cut whole rows (B, T, ...) to this device's tokens."""
        return torch.cat([x_BT[:, chunk] for chunk in self.chunks(x_BT.shape[1])], dim=1)

    def gather(self, x_BT: Tensor) -> Tensor:
        """Put whole rows together from the tokens of all devices, in the order of the row."""
        # Device r sends its chunk from the front and its chunk from the back, so that the front
        # ones rise with the devices and the back ones fall.
        chunks = gather_tokens(x_BT, self.group, self.devices).chunk(2 * self.devices, dim=1)
        return torch.cat([*chunks[::2], *reversed(chunks[1::2])], dim=1)
