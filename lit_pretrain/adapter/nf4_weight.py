"""NF4 weight: a frozen matrix that is kept in four bits and multiplies as if it were not."""

from typing import Any

import torch
from torch import Tensor, nn

from .nf4 import NF4, dequantize, quantize


class NF4Weight(nn.Module):
    """The quantised stand-in of a weight (out, in).

    Its tensors are buffers that no state dict holds: they follow from the base's weights.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        found = quantize(weight)
        for name, part in zip(NF4._fields, found, strict=True):
            # fp32 kept as int32: a cast of the network to another dtype must not reach the scales.
            self.register_buffer(name, part if part.dtype == torch.uint8 else part.view(torch.int32), persistent=False)

    def parts(self) -> NF4:
        """The quantised matrix."""
        return NF4(*(part if part.dtype == torch.uint8 else part.view(torch.float32) for part in self.buffers(recurse=False)))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (out, in)."""
        return dequantize(self.parts(), self.shape, dtype)

    def linear(self, x: Tensor) -> Tensor:
        """`x @ weight.T`, computed as `F.linear` would: in autocast's dtype where it is on."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        out: Tensor = _Linear.apply(x, self.shape, *self.parts())  # type: ignore[no-untyped-call]
        return out


class _Linear(torch.autograd.Function):
    """Dequantises in the forward and once more in the backward pass, so that the matrix is never kept in full."""

    @staticmethod
    def forward(x: Tensor, shape: tuple[int, ...], *parts: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.linear(x, dequantize(NF4(*parts), shape, x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.shape, *parts = inputs
        ctx.save_for_backward(*parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.autocast(grad.device.type, enabled=False):
            grad_x = grad @ dequantize(NF4(*ctx.saved_tensors), ctx.shape, grad.dtype)
        return grad_x, None, None, None, None, None
