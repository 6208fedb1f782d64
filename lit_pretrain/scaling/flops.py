"""Training FLOPs per token, counted from the shape alone, for each kind of training."""

from __future__ import annotations

from typing import Literal, NamedTuple

from lit_pretrain.model.config import ModelConfig, count_parameters


class FlopsPerToken(NamedTuple):
    """Training FLOPs (forward and backward, a multiply-add counted as two) per input token."""

    training: float
    """6 N_matmul + full attention scores, as `torch.utils.flop_counter` counts: 12 L H K T."""
    causal: float
    """`training` with only the scores that a causal mask needs: half of the attention term."""
    dense: float
    """6 N_matmul alone."""
    six_n: float
    """6 N of all parameters, the C = 6 N D of scaling laws (Kaplan et al. 2020, section 2.1;
    Hoffmann et al. 2022, appendix F).
    """
    attention: float
    """Attention scores alone: training - dense."""


def flops_per_token(
    config: ModelConfig, seq_len: int, *, adapter_parameters: int | None = None
) -> FlopsPerToken:
    """Count the FLOPs per token of a shape at a sequence length.

    An embedding look-up is no matrix product and counts nothing; a tied head counts, because it
    multiplies. Sliding windows and document masks get no credit: kernels differ in what they skip.

    Args:
        config: The shape.
        seq_len: Tokens of a row.
        adapter_parameters: Parameters of the adapter that is trained in place of the network. A
            frozen matrix then costs 4 FLOPs per parameter, because it gets no gradient of its own.
    """
    counts = count_parameters(config)
    dense = (
        6.0 * counts.matmul
        if adapter_parameters is None
        else 4.0 * counts.matmul + 6.0 * adapter_parameters
    )
    attention = 12.0 * config.n_layer * config.n_head * config.head_size * seq_len
    return FlopsPerToken(
        training=dense + attention,
        causal=dense + attention / 2,
        dense=dense,
        six_n=6.0 * counts.total,
        attention=attention,
    )


def mfu(tokens_per_second: float, flops: float, peak: float) -> float:
    """Compute the model-FLOPs utilisation, the share of the peak that training reaches.

    The definition is that of Chowdhery et al. 2022, appendix B.

    Args:
        tokens_per_second: Throughput, summed over the same devices as `peak`.
        flops: Training FLOPs per token, without those that activation checkpointing recomputes.
        peak: Dense peak in FLOP/s.
    """
    return tokens_per_second * flops / peak


# Kinds of training other than pretraining.

StageName = Literal["pretrain", "sft", "dpo", "lora", "qlora"]


class StageCost(NamedTuple):
    """What one kind of training costs per token, and which weights it trains."""

    flops_per_token: float
    """Training FLOPs, with full attention."""
    trainable: float
    """Share of the network's own parameters that get gradients and moments."""
    added: int
    """Parameters that an adapter adds and trains."""
    reference: bool
    """Whether a frozen copy of the network also runs forward."""
    quantized: int
    """Frozen parameters of the network that are stored in four bits."""
    why: str
    """Arithmetic behind `flops_per_token`, for the reader of a plan."""


def stage_cost(
    config: ModelConfig, seq_len: int, stage: StageName, lora_rank: int = 16
) -> StageCost:
    """Count the cost of one kind of training.

    A matrix product costs 2 FLOPs per weight and token forward, 2 for the gradient of its input and
    2 for that of its weight. Frozen weights save the last; a reference adds a forward pass.
    Attention scores have no weights: forward 4 H K T a layer, backward twice that.

    Args:
        config: Shape of the network.
        seq_len: Tokens of a row.
        stage: pretrain and sft train all weights. dpo adds a frozen reference. lora freezes the
            weights and trains two factors beside each matrix of the blocks. qlora also stores
            these matrices in four bits; restoring them is not counted.
        lora_rank: Rank of the factors.
    """
    flops = flops_per_token(config, seq_len)
    if stage == "dpo":
        return StageCost(
            flops.training * 4 / 3,
            1.0,
            0,
            True,
            0,
            "forward and backward of the policy, forward of the reference: 4/3",
        )
    if stage in ("lora", "qlora"):
        added, matmul = lora_parameters(config, lora_rank), count_parameters(config).matmul
        frozen = 4.0 * matmul
        quantized = matmul - config.vocab_size * config.width if stage == "qlora" else 0
        why = (
            f"frozen weights 4 N instead of 6 N, {added:,} LoRA weights 6 N (rank {lora_rank},"
            " every matrix of the blocks)"
        )
        return StageCost(frozen + flops.attention + 6.0 * added, 0.0, added, False, quantized, why)
    return StageCost(flops.training, 1.0, 0, False, 0, "all weights: forward 2 N, backward 4 N")


def lora_parameters(config: ModelConfig, rank: int) -> int:
    """Count the weights of LoRA's factors beside every matrix of the blocks.

    Each matrix adds rank times the sum of its sides (Hu et al. 2021, section 4.1).
    """
    d, f = config.width, config.ffn_size
    q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
    sides = 2 * (d + q) + 2 * (d + k) + (3 if config.gated else 2) * (d + f)
    return config.n_layer * rank * sides
