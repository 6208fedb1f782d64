"""Feed-forward: two matrices and an activation, or three with a gate."""

import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.linear import Linear


class FeedForward(nn.Module):
    """Per-token network of a block: down(act(up(x))), or down(act(gate(x)) * up(x)) (Shazeer 2020) for swiglu and geglu."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = Linear(config.width, config.ffn_size, bias=config.ffn_bias) if config.gated else None
        self.up_proj = Linear(config.width, config.ffn_size, bias=config.ffn_bias)
        self.down_proj = Linear(config.ffn_size, config.width, bias=config.ffn_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        up = self.up_proj(x_BTD)
        if self.gate_proj is not None:
            gate = self.gate_proj(x_BTD)
            hidden = (F.silu(gate) if self.activation == "swiglu" else F.gelu(gate, approximate="tanh")) * up
        elif self.activation == "relu2":
            hidden = F.relu(up).square()  # So et al. 2021, Primer
        else:
            hidden = F.gelu(up, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        out: Tensor = self.down_proj(hidden)
        return out
