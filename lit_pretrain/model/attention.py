"""Attention: grouped-query, causal, within a document, over the tokens of a pass and of the cache.

Axes: B rows, T tokens, D width, H query heads, G key and value heads, K channels of a head, C
channels of all value heads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_pretrain.model.config import VALUE_GATE_CHANNELS, ModelConfig, RopeScaling
from lit_pretrain.model.kernels import Kernel
from lit_pretrain.model.kv_cache import KVCache
from lit_pretrain.model.layers import Linear, RMSNorm


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of every angle, fp32 or better, broadcastable to (B, T, H, K/2).

    Not a tuple, lest FSDP's mixed precision find the tensors among a block's inputs and round them.
    """

    cos: Tensor
    sin: Tensor


def rotary_frequencies(head_size: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Compute each channel pair's radians per token: theta^(-2i/K) (Su et al. 2021, eq. 15).

    They are stretched if `scaling` says so.

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
    keep = (rotations - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - keep) * frequency / scaling.factor + keep * frequency
    stretched = torch.where(
        rotations < scaling.low_freq_factor, frequency / scaling.factor, frequency
    )
    inside = (rotations >= scaling.low_freq_factor) & (rotations <= scaling.high_freq_factor)
    return torch.where(inside, between, stretched)


class Rotary(nn.Module):
    """Tables of cosines and sines for positions 0 .. max_seq_len - 1.

    The tables are derived, so they are not in the state dict; and they stay fp32 or better whatever
    the module is cast to: a bf16 table would turn distant positions by the same angle. Angles are
    multiplied in fp64, since in fp32 they are off by 5e-4 at position 8192. Scores depend on
    differences of positions only, so packed documents need no restart.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.theta = config.rope_theta
        self.scaling = config.rope_scaling
        self.max_seq_len = config.max_seq_len
        self.register_buffer(
            "cos",
            torch.empty(self.max_seq_len, self.head_size // 2, dtype=torch.float32),
            persistent=False,
        )
        self.register_buffer(
            "sin",
            torch.empty(self.max_seq_len, self.head_size // 2, dtype=torch.float32),
            persistent=False,
        )
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
        # Every cast, move and to_empty() passes here: whatever it did to the tables, they are made
        # anew.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill()
        return self

    def forward(self, length: int, positions_BT: Tensor | None = None) -> Rotation:
        """Look up the rotation of positions 0 .. length - 1, or of the positions given."""
        if positions_BT is None:
            return Rotation(self.cos[None, :length, None], self.sin[None, :length, None])
        return Rotation(self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None])


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate channels i and i + K/2 of every head together, as Hugging Face checkpoints do."""
    left, right = x_BTHK.chunk(2, dim=-1)
    cos, sin = rotation.cos, rotation.sin
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).type_as(x_BTHK)


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share; made once."""

    kernel: Kernel
    rotation: Rotation | None
    cache: KVCache | None = None
    positions_BT: Tensor | None = None
    """Slots of the new tokens; only with a cache."""


class Attention(nn.Module):
    """Multi-head attention with grouped key and value heads (Ainslie et al. 2023).

    Queries, keys and values have a matrix each: Muon sees true matrices, and exchange formats map
    one to one.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        q_size, kv_size = config.n_head * config.head_size, config.kv_heads * config.head_size
        self.layer = layer
        self.head_size = config.head_size
        self.window = config.window(layer)
        self.q_proj = Linear(config.width, q_size, bias=config.qkv_bias)
        self.k_proj = Linear(config.width, kv_size, bias=config.qkv_bias)
        self.v_proj = Linear(config.width, kv_size, bias=config.qkv_bias)
        self.out_proj = Linear(q_size, config.width, bias=config.attn_out_bias)
        self.q_norm = (
            RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        )
        self.k_norm = (
            RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        )
        has_value_embedding = config.has_value_embedding(layer)
        self.value_gate = (
            Linear(VALUE_GATE_CHANNELS, config.kv_heads, bias=False)
            if has_value_embedding
            else None
        )

    def forward(self, x_BTD: Tensor, shared: Pass, value_BTC: Tensor | None = None) -> Tensor:
        """Mix the tokens that see each other.

        Args:
            x_BTD: Normalised residual stream.
            shared: Kernel, rotation and cache of this forward pass.
            value_BTC: Value embedding of the input tokens, C = G * K; given exactly to the layers
                that have a gate for it.

        Returns:
            What is added to the residual stream, (B, T, D).
        """
        q_BTHK = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        k_BTGK = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        v_BTGK = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        if self.value_gate is not None:
            assert value_BTC is not None
            # Twice a sigmoid: at first, with a gate of zeros, the embedding enters as it is.
            gate_BTG = 2 * torch.sigmoid(self.value_gate(x_BTD[..., :VALUE_GATE_CHANNELS]))
            v_BTGK = v_BTGK + gate_BTG[..., None] * value_BTC.view_as(v_BTGK).type_as(v_BTGK)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        if shared.rotation is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, shared.rotation), rotate(k_BTGK, shared.rotation)
        q_BTHK, k_BTGK = q_BTHK.type_as(v_BTGK), k_BTGK.type_as(v_BTGK)
        if shared.cache is None:
            heads_BTHK = shared.kernel(q_BTHK, k_BTGK, v_BTGK, self.window)
        else:
            assert shared.positions_BT is not None
            k_BSGK, v_BSGK = shared.cache.write(self.layer, shared.positions_BT, k_BTGK, v_BTGK)
            with torch.autocast(
                x_BTD.device.type, enabled=False
            ):  # in the type in which the cache is stored
                heads_BTHK = shared.kernel(
                    q_BTHK.type_as(k_BSGK), k_BSGK, v_BSGK, self.window
                ).type_as(q_BTHK)
        out: Tensor = self.out_proj(heads_BTHK.flatten(2))
        return out
