"""Stages: what a kind of training costs per token and keeps in memory, as multiples of pretraining."""

from __future__ import annotations

from typing import Literal, NamedTuple

from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.flops import flops_per_token

Stage = Literal["pretrain", "sft", "dpo", "lora", "qlora"]


class StageCost(NamedTuple):
    """What a stage does with each token and each weight."""

    flops_per_token: float
    """Training FLOPs, with full attention."""
    trainable: float
    """Share of the shape's own parameters that get gradients and moments."""
    added: int
    """Parameters added and trained beside them."""
    reference: bool
    """A frozen copy runs forward, too."""
    quantized: int
    """Frozen parameters of the shape in four bits."""
    why: str


def stage_cost(config: ModelConfig, seq_len: int, stage: Stage, lora_rank: int = 16) -> StageCost:
    """Cost of a stage.

    A matrix product costs 2 FLOPs per weight and token forward, 2 for the gradient of its input and 2 for that of its weight. Frozen
    weights spare the last; a reference adds a forward pass. Attention scores have no weights: forward 4 H K T a layer, backward twice that.

    Args:
        config: Shape.
        seq_len: Tokens of a row.
        stage: pretrain and sft: all weights. dpo: the same and a frozen reference. lora: frozen weights, and two factors beside each
            matrix of the blocks. qlora: the same, with these matrices in four bits; restoring them is not counted.
        lora_rank: Of the factors.
    """
    flops = flops_per_token(config, seq_len)
    if stage == "dpo":
        return StageCost(flops.training * 4 / 3, 1.0, 0, True, 0, "forward and backward of the policy, forward of the reference: 4/3")
    if stage in ("lora", "qlora"):
        added, matmul = lora_parameters(config, lora_rank), count_parameters(config).matmul
        frozen = 4.0 * matmul
        quantized = matmul - config.vocab_size * config.width if stage == "qlora" else 0
        why = f"frozen weights 4 N instead of 6 N, {added:,} LoRA weights 6 N (rank {lora_rank}, every matrix of the blocks)"
        return StageCost(frozen + flops.attention + 6.0 * added, 0.0, added, False, quantized, why)
    return StageCost(flops.training, 1.0, 0, False, 0, "all weights: forward 2 N, backward 4 N")


def lora_parameters(config: ModelConfig, rank: int) -> int:
    """Weights of both factors beside every matrix of the blocks: rank times the sum of its sides (Hu et al. 2021, section 4.1)."""
    d, f = config.width, config.ffn_size
    q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
    sides = 2 * (d + q) + 2 * (d + k) + (3 if config.gated else 2) * (d + f)
    return config.n_layer * rank * sides
