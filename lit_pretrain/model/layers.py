"""Layers: the linear product, the norms, and the feed-forward network of a block.

Axes: B rows, T tokens, D width.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.roles import Role

ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
"""Whether this torch has oneDNN's product, which its own compiler calls, too."""
WORTH = 2**18
"""Below this many multiplications, oneDNN's call overhead (18 µs; torch: 3 µs) outweighs it."""
FEW = 16
"""Most rows for which oneDNN is called: it compiles code for each number of them."""


class Linear(nn.Linear):
    """A linear layer of torch's that multiplies by `linear`."""

    roles: ClassVar[dict[str, Role]] = {"weight": "matrix", "bias": "vector"}

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the product x @ weight.T + bias.

    In fp32 on a CPU torch calls MKL, which computes a product with one row on a single thread and,
    on AMD processors, is slow for a few rows too. oneDNN computes those here (docs/experiments.md),
    if no gradient is wanted, because its product has none.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if (
        ONEDNN
        and not torch.compiler.is_compiling()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and WORTH <= x.numel() * weight.shape[0] <= FEW * weight.numel()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not hasattr(weight, "device_mesh")  # a part of a matrix (tensor parallelism)
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a learned gain if `has_weight` (Zhang and Sennrich 2019).

    Args:
        size: Channels in the last axis.
        eps: Added to the mean square.
        has_weight: Learn a gain per channel.
    """

    roles: ClassVar[dict[str, Role]] = {"weight": "vector"}

    def __init__(self, size: int, eps: float, has_weight: bool) -> None:
        super().__init__()
        self.size = (size,)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size)) if has_weight else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; any leading shape."""
        # Under autocast queries and keys come in bf16: the fused kernel wants the gain in the same
        # type.
        weight = None if self.weight is None else self.weight.type_as(x)
        return F.rms_norm(x, self.size, weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps), with optional learned gain and bias (Ba et al. 2016)."""

    roles: ClassVar[dict[str, Role]] = {"weight": "vector", "bias": "vector"}

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


class FeedForward(nn.Module):
    """Per-token network of a block: down(act(up(x))).

    For swiglu and geglu it is down(act(gate(x)) * up(x)) (Shazeer 2020).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = (
            Linear(config.width, config.ffn_size, bias=config.ffn_bias) if config.gated else None
        )
        self.up_proj = Linear(config.width, config.ffn_size, bias=config.ffn_bias)
        self.down_proj = Linear(config.ffn_size, config.width, bias=config.ffn_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        up = self.up_proj(x_BTD)
        if self.gate_proj is not None:
            gate = self.gate_proj(x_BTD)
            hidden = (
                F.silu(gate) if self.activation == "swiglu" else F.gelu(gate, approximate="tanh")
            ) * up
        elif self.activation == "relu2":
            hidden = F.relu(up).square()  # So et al. 2021, Primer
        else:
            hidden = F.gelu(up, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        out: Tensor = self.down_proj(hidden)
        return out
