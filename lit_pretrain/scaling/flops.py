"""FLOPs: what one training token costs, counted from the shape alone."""

from typing import NamedTuple, Optional

from lit_pretrain.model.config import ModelConfig, count_parameters


class FlopsPerToken(NamedTuple):
    """Training FLOPs (forward and backward, a multiply-add counted as two) per input token."""

    training: float
    """6 N_matmul + full attention scores, as `torch.utils.flop_counter` counts: 12 L H K T."""
    causal: float
    """The same with only the scores that causal masking needs: half of the attention term."""
    dense: float
    """6 N_matmul alone, the "6N" of scaling laws."""


def flops_per_token(config: ModelConfig, seq_len: int, *, adapter_parameters: Optional[int] = None) -> FlopsPerToken:
    """FLOPs per token of a shape at a sequence length.

    A looked-up embedding is not a matrix product and counts nothing; a tied head counts, because it multiplies.
    Sliding windows and document masks are not credited: kernels differ in what they skip.

    Args:
        config: The shape.
        seq_len: Inputs per row.
        adapter_parameters: With an adapter, its size: a frozen matrix costs 4 FLOPs a parameter, because it gets no gradient of its own.
    """
    matmul = count_parameters(config).matmul
    dense = 6.0 * matmul if adapter_parameters is None else 4.0 * matmul + 6.0 * adapter_parameters
    attention = 12.0 * config.n_layer * config.n_head * config.head_size * seq_len
    return FlopsPerToken(training=dense + attention, causal=dense + attention / 2, dense=dense)
