"""Attention: grouped-query, causal, within a document, over the tokens of this pass and those in the cache."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from lit_pretrain.model.config import VALUE_GATE_CHANNELS, ModelConfig
from lit_pretrain.model.kernels import Kernel
from lit_pretrain.model.kv_cache import KVCache
from lit_pretrain.model.linear import Linear
from lit_pretrain.model.norm import RMSNorm
from lit_pretrain.model.rotary import Rotation, rotate


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share; made once."""

    kernel: Kernel
    rotation: Optional[Rotation]
    cache: Optional[KVCache] = None
    positions_BT: Optional[Tensor] = None
    """Slots of the new tokens; only with a cache."""


class Attention(nn.Module):
    """Multi-head attention with grouped key and value heads (Ainslie et al. 2023).

    Queries, keys and values have a matrix each: Muon sees true matrices, and exchange formats map one to one.
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
        self.q_norm = RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        has_value_embedding = config.has_value_embedding(layer)
        self.value_gate = Linear(VALUE_GATE_CHANNELS, config.kv_heads, bias=False) if has_value_embedding else None

    def forward(self, x_BTD: Tensor, shared: Pass, value_BTC: Optional[Tensor] = None) -> Tensor:
        """Mix tokens.

        Args:
            x_BTD: Normalised residual stream.
            shared: Kernel, rotation and cache of this forward pass.
            value_BTC: Value embedding of the input tokens, C = G * K; given exactly to the layers that have a gate for it.

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
            with torch.autocast(x_BTD.device.type, enabled=False):  # in the type in which the cache is stored
                heads_BTHK = shared.kernel(q_BTHK.type_as(k_BSGK), k_BSGK, v_BSGK, self.window).type_as(q_BTHK)
        out: Tensor = self.out_proj(heads_BTHK.flatten(2))
        return out
