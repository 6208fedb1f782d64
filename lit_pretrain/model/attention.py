"""Attention: grouped-query, causal, within a document."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.model.config import VALUE_GATE_CHANNELS, ModelConfig
from lit_pretrain.model.norm import RMSNorm
from lit_pretrain.model.rotary import Rotation, rotate


class Attention(nn.Module):
    """Multi-head attention with grouped key and value heads (Ainslie et al. 2023).

    Queries, keys and values have a matrix each, so that Muon sees true matrices and exchange formats map one to one.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        q_size, kv_size = config.n_head * config.head_size, config.kv_heads * config.head_size
        self.layer = layer
        self.head_size = config.head_size
        self.q_proj = nn.Linear(config.width, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(q_size, config.width, bias=config.attn_out_bias)
        self.q_norm = RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        has_gate = config.has_value_embedding(layer)
        self.value_gate = nn.Linear(VALUE_GATE_CHANNELS, config.kv_heads, bias=False) if has_gate else None

    def forward(self, x_BTD: Tensor, rotation: Optional[Rotation], mask: Optional[Tensor], value_BTC: Optional[Tensor]) -> Tensor:
        q_BTHK = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        k_BTGK = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        v_BTGK = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        if self.value_gate is not None:
            assert value_BTC is not None
            gate_BTG = 2 * torch.sigmoid(self.value_gate(x_BTD[..., :VALUE_GATE_CHANNELS]))
            v_BTGK = v_BTGK + gate_BTG[..., None] * value_BTC.view_as(v_BTGK)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        if rotation is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, rotation), rotate(k_BTGK, rotation)
        o_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTGK.transpose(1, 2),
            v_BTGK.type_as(k_BTGK).transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=k_BTGK.shape[2] != q_BTHK.shape[2],
        )
        return self.out_proj(o_BHTK.transpose(1, 2).flatten(2))
