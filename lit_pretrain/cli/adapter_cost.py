"""Adapter cost: what is trained and what it takes to keep it, before anything is built."""

from typing import NamedTuple

import torch

from lit_pretrain.adapter import LoRA
from lit_pretrain.adapter.linear import AdaptedLinear
from lit_pretrain.adapter.nf4 import BLOCK, SCALE_BLOCK
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer


class AdapterCost(NamedTuple):
    """Sizes of training with an adapter, without activations; bytes as in 32-true and bf16-mixed, which keep weights in fp32."""

    matrices: int
    """Adapted matrices."""
    trained: int
    """Parameters that are trained."""
    quantized: int
    """Parameters of the network that are kept in four bits."""
    total: int
    """Parameters of the network without the adapter."""
    weight_bytes: int
    """Weights of network and adapter."""
    state_bytes: int
    """Gradients and AdamW's two moments."""
    full_bytes: int
    """Weights, gradients and moments if everything were trained."""

    def line(self, adapter: LoRA) -> str:
        """All of it in one line."""
        kind = ("DoRA" if adapter.dora else "LoRA") + (" on NF4" if adapter.quantize else "")
        return (
            f"adapter: {kind}, rank {adapter.rank}, on {self.matrices} matrices: {self.trained:,} of {self.total:,} parameters trained "
            f"({self.trained / self.total:.2%}) | weights {_mb(self.weight_bytes)}, gradients and moments {_mb(self.state_bytes)} "
            f"(all trained: {_mb(self.full_bytes)} together)"
        )


def adapter_cost(shape: ModelConfig, adapter: LoRA) -> AdapterCost:
    """Count what an adapter of a network costs, without memory of its own."""
    with torch.device("meta"):
        net = Transformer(shape)
    total = sum(p.numel() for p in net.parameters())
    # Quantisation would need the weights; its size follows from their number.
    plain = LoRA(**{**adapter.__dict__, "quantize": None})
    names = plain.apply(net)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    weights = sum(t.numel() * 4 for t in net.state_dict().values())
    quantized = 0
    if adapter.quantize is not None:
        for module in net.modules():
            if isinstance(module, AdaptedLinear):
                count = module.weight.numel()
                quantized += count
                blocks = -(-count // BLOCK)
                weights -= 4 * count - (-(-count // 2) + blocks + 4 * -(-blocks // SCALE_BLOCK) + 4)
    return AdapterCost(len(names), trained, quantized, total, weights, 12 * trained, 16 * total)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
