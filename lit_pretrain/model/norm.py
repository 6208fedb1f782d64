"""Norms: RMSNorm and LayerNorm, with or without learned gain and bias."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a learned gain if `has_weight` (Zhang and Sennrich 2019).

    Args:
        size: Channels in the last axis.
        eps: Added to the mean square.
        has_weight: Learn a gain per channel.
    """

    def __init__(self, size: int, eps: float, has_weight: bool) -> None:
        super().__init__()
        self.size = (size,)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size)) if has_weight else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; any leading shape."""
        # Under autocast queries and keys come in bf16: the fused kernel wants the gain in the same type.
        weight = None if self.weight is None else self.weight.type_as(x)
        return F.rms_norm(x, self.size, weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps), with optional learned gain and bias (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float, has_weight: bool, has_bias: bool) -> None:
        super().__init__()
        self.size = (size,)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size)) if has_weight else None
        self.bias = nn.Parameter(torch.empty(size)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; any leading shape."""
        return F.layer_norm(x, self.size, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """Build the norm that the config names, for a last axis of `size` channels."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, config.norm_eps, config.norm_weight)
    return LayerNorm(size, config.norm_eps, config.norm_weight, config.norm_bias)
