"""Rotary positions: each pair of channels of a query or key is turned by an angle that grows with its position."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig, RopeScaling


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of every angle, fp32 or better, broadcastable to (B, T, H, K/2).

    Not a tuple, lest FSDP's mixed precision find the tensors among a block's inputs and round them.
    """

    cos: Tensor
    sin: Tensor


def rotary_frequencies(head_size: int, theta: float, scaling: Optional[RopeScaling]) -> Tensor:
    """Radians per token of each pair of channels: theta^(-2i/K) (Su et al. 2021, eq. 15), stretched if `scaling` says so.

    In fp32 and on the CPU, so that they are bit for bit those of the published checkpoints.

    Returns:
        Frequencies of shape (K/2,).
    """
    channel = torch.arange(0, head_size, 2, dtype=torch.int64, device="cpu").to(torch.float32)
    frequency = 1.0 / theta ** (channel / head_size)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    rotations = scaling.original_max_seq_len / wavelength  # full turns within the original context
    keep = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - keep) * frequency / scaling.factor + keep * frequency
    stretched = torch.where(rotations < scaling.low_freq_factor, frequency / scaling.factor, frequency)
    inside = (rotations >= scaling.low_freq_factor) & (rotations <= scaling.high_freq_factor)
    return torch.where(inside, between, stretched)


class Rotary(nn.Module):
    """Tables of cosines and sines for positions 0 .. max_seq_len - 1.

    The tables are derived, so they are not in the state dict; and they stay fp32 or better whatever the module is cast to: a bf16 table
    would turn distant positions by the same angle. Angles are multiplied in fp64, since in fp32 they are off by 5e-4 at position 8192.
    Scores depend on differences of positions only, so packed documents need no restart.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.theta = config.rope_theta
        self.scaling = config.rope_scaling
        self.max_seq_len = config.max_seq_len
        self.register_buffer("cos", torch.empty(self.max_seq_len, self.head_size // 2, dtype=torch.float32), persistent=False)
        self.register_buffer("sin", torch.empty(self.max_seq_len, self.head_size // 2, dtype=torch.float32), persistent=False)
        self._fill()

    def _fill(self) -> None:
        device = self.cos.device
        if device.type == "meta":
            return
        dtype = torch.promote_types(self.cos.dtype, torch.float32)
        position = torch.arange(self.max_seq_len, dtype=torch.float64, device="cpu")
        angle = position[:, None] * rotary_frequencies(self.head_size, self.theta, self.scaling)
        self.cos = angle.cos().to(device, dtype)
        self.sin = angle.sin().to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        # Every cast, move and to_empty() passes here: whatever it did to the tables, they are made anew.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill()
        return self

    def forward(self, length: int, positions_BT: Optional[Tensor] = None) -> Rotation:
        """Look up the rotation of positions 0 .. length - 1, or of the positions given."""
        if positions_BT is None:
            return Rotation(self.cos[None, :length, None], self.sin[None, :length, None])
        return Rotation(self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None])


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Turn channel i and channel i + K/2 of every head together (the layout of Hugging Face checkpoints)."""
    left, right = x_BTHK.chunk(2, dim=-1)
    cos, sin = rotation.cos, rotation.sin
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).type_as(x_BTHK)
