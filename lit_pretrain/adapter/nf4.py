"""NF4: a frozen matrix in four bits a weight, with its scales in eight.

Dettmers et al. (2023), QLoRA, section 3 and appendix E.

A block of 64 weights shares a scale, its largest magnitude. The scales, less their mean, are
themselves quantised in blocks of 256, so that a weight costs 4 + 8/64 + 32/(64 * 256) = 4.127 bits.
Codes, layout and rounding are those of bitsandbytes, bit for bit.
"""

import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own."""

# Quantiles of the normal distribution with an exact zero, scaled to [-1, 1] (appendix E).
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class NF4(NamedTuple):
    """A quantised matrix."""

    packed: Tensor
    """Codes of two weights a byte, the first in the upper half, uint8 (ceil(n / 2),)."""
    scale_code: Tensor
    """Codes of the blocks' scales, uint8 (blocks,)."""
    scale_scale: Tensor
    """Scales of the scales, fp32 (ceil(blocks / 256),)."""
    offset: Tensor
    """Mean of the scales, fp32 ()."""


@functools.cache
def levels(device: torch.device) -> Tensor:
    """Return the 16 values of a weight, ascending, fp32."""
    return torch.tensor(LEVELS, device=device)


@functools.cache
def scale_levels(device: torch.device) -> Tensor:
    """Return the 256 values of a scale, ascending, fp32.

    In the decade 10^(i-6) lie 2^i centres of each sign (Dettmers 2016); 0 and 1 join them.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        centres = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += centres.tolist() + (-centres).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def _grid(device: torch.device) -> Tensor:
    """Tabulate the nearest scale level of each of 2^16 points from -1 to 1, uint8."""
    known = scale_levels(torch.device("cpu"))
    points = (torch.arange(2**16, dtype=torch.float64) / (2**15 - 0.5) - 1).float()
    return (
        torch.bucketize(points, (known[:-1] + known[1:]) / 2, out_int32=True)
        .to(torch.uint8)
        .to(device)
    )


def _blocks(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Cut values into blocks, the last padded with zeros, with the largest magnitude of each."""
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % block)).view(-1, block)
    return blocks, blocks.abs().amax(dim=1)


def _quantize_weights(flat: Tensor) -> tuple[Tensor, Tensor]:
    blocks, scale = _blocks(flat, BLOCK)
    # Times the reciprocal, not over the scale: the two round differently, and bitsandbytes does the
    # former,
    unit = blocks * (1.0 / scale.clamp(min=1e-38))[:, None]
    if flat.numel() % BLOCK:  # but in a last block that is not full it divides.
        scale[-1] = scale[-1].clamp(min=1e-38)
        unit[-1] = blocks[-1] / scale[-1]
    known = levels(flat.device)
    code = torch.bucketize(
        unit.clamp(-1, 1).flatten()[: flat.numel()], (known[:-1] + known[1:]) / 2, out_int32=True
    )
    return code.to(torch.uint8), scale


def _quantize_scales(scale: Tensor) -> tuple[Tensor, Tensor]:
    blocks, largest = _blocks(scale, SCALE_BLOCK)
    unit = (blocks * (1.0 / largest)[:, None]).flatten()[: scale.numel()]
    # bitsandbytes rounds to a grid of 2^16 points first, and reads the nearest level of that point
    # from a table.
    point = ((unit + 1.0) * 0.5 * (2**16 - 1) + 0.5).floor().clamp(0, 2**16 - 1)
    return (
        _grid(scale.device)[point.nan_to_num(0.0).long()],
        largest,
    )  # not a number: a block of zeros


def quantize(weight: Tensor) -> NF4:
    """Quantise a matrix.

    Args:
        weight: Of any shape and floating type, at least one element.
    """
    flat = weight.detach().reshape(-1).float()
    code, scale = _quantize_weights(flat)
    if code.numel() % 2:
        code = torch.cat([code, code.new_full((1,), LEVELS.index(0.0))])
    offset = scale.mean()
    return NF4((code[::2] << 4) | code[1::2], *_quantize_scales(scale - offset), offset)


def dequantize(
    quantized: NF4, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Restore the matrix, rounded to `dtype` at the end.

    The kernels of bitsandbytes do it on CUDA where that is installed.
    """
    if quantized.packed.device.type == "cuda" and has_bitsandbytes():
        return dequantize_bitsandbytes(quantized, shape, dtype)
    return dequantize_torch(quantized, shape, dtype)


def dequantize_torch(
    quantized: NF4, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Restore the matrix in plain torch."""
    packed, scale_code, scale_scale, offset = quantized
    scale = (
        scale_levels(packed.device)[scale_code.int()]
        * scale_scale.repeat_interleave(SCALE_BLOCK)[: scale_code.numel()]
        + offset
    )
    count = 1
    for size in shape:
        count *= size
    code = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count].int()
    values = levels(packed.device)[code]
    pad = -count % BLOCK
    blocks = torch.nn.functional.pad(values, (0, pad)).view(-1, BLOCK) * scale[:, None]
    return blocks.flatten()[:count].view(shape).to(dtype)


@functools.cache
def has_bitsandbytes() -> bool:
    """Tell whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def dequantize_bitsandbytes(
    quantized: NF4, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Restore the matrix by the kernels of bitsandbytes, which read the same bytes."""
    import bitsandbytes  # noqa: F401  (registers the operators)

    packed, scale_code, scale_scale, offset = quantized
    ops = torch.ops.bitsandbytes
    scale = (
        ops.dequantize_blockwise(
            scale_code, scale_scale, scale_levels(packed.device), SCALE_BLOCK, torch.float32
        )
        + offset
    )
    out: Tensor = ops.dequantize_4bit(packed[:, None], scale, BLOCK, "nf4", list(shape), dtype)
    return out


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
            self.register_buffer(
                name,
                part if part.dtype == torch.uint8 else part.view(torch.int32),
                persistent=False,
            )

    def parts(self) -> NF4:
        """Return the quantised matrix."""
        return NF4(
            *(
                part if part.dtype == torch.uint8 else part.view(torch.float32)
                for part in self.buffers(recurse=False)
            )
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Restore the matrix (out, in)."""
        return dequantize(self.parts(), self.shape, dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Compute `x @ weight.T` as `F.linear` would: in autocast's dtype where it is on."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        out: Tensor = _Linear.apply(x, self.shape, *self.parts())  # type: ignore[no-untyped-call]  # torch's own
        return out


class _Linear(torch.autograd.Function):
    """Product that dequantises in both passes, so that the whole matrix is never kept."""

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
