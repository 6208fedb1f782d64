"""Sampling: from the logits of the next token to a token."""

from typing import Optional

import torch
from torch import Tensor

from lit_pretrain.errors import UserError


def check_sampling(temperature: float, top_k: Optional[int], top_p: Optional[float], min_p: Optional[float]) -> None:
    """Refuse settings that name no distribution.

    Raises:
        UserError: With the setting and its value.
    """
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 (greedy) or positive")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1, or left out to keep all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must lie in (0, 1], or be left out to keep all tokens")
    if min_p is not None and not 0 <= min_p <= 1:
        raise UserError(f"min_p={min_p} must lie in [0, 1], or be left out to keep all tokens")


def candidates(
    logits_BV: Tensor,
    *,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    min_p: Optional[float] = None,
) -> tuple[Tensor, Tensor]:
    """List the tokens that may come next, likeliest first, and their probabilities.

    The temperature is applied first; each filter then sees the renormalised survivors of the one before it.

    Args:
        logits_BV: Logits of the next token.
        temperature: Divides the logits; 0 leaves the likeliest token alone (on a tie the lowest id).
        top_k: Keep so many of the likeliest tokens.
        top_p: Keep the fewest tokens that together reach this probability (Holtzman et al. 2020).
        min_p: Keep the tokens whose probability is at least this fraction of the likeliest one's (Nguyen et al. 2024).

    Returns:
        Probabilities, descending, fp32 or better, zero for what a filter removed; and token ids. Both (B, C) with C at most V.

    Raises:
        UserError: If a row of logits holds NaN or only infinities.
    """
    check_sampling(temperature, top_k, top_p, min_p)
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    # a stable sort: the same tokens survive on every device when logits tie
    logits_BC, ids_BC = logits_BV.sort(dim=-1, descending=True, stable=True)
    if not bool(torch.isfinite(logits_BC[:, 0]).all()):
        raise UserError("the model's logits are not finite: its weights are broken, or its precision is too low")
    keep = 1 if temperature == 0 else min(top_k or logits_BC.shape[1], logits_BC.shape[1])
    logits_BC, ids_BC = logits_BC[:, :keep], ids_BC[:, :keep]
    probabilities_BC = ((logits_BC - logits_BC[:, :1]) / (temperature or 1.0)).softmax(-1)
    if top_p is not None:
        before_BC = probabilities_BC.cumsum(-1) - probabilities_BC
        probabilities_BC = _renormalise(probabilities_BC.masked_fill(before_BC >= top_p, 0.0))
    if min_p is not None:
        probabilities_BC = _renormalise(probabilities_BC.masked_fill(probabilities_BC < min_p * probabilities_BC[:, :1], 0.0))
    return probabilities_BC, ids_BC


def draw(probabilities_BC: Tensor, ids_BC: Tensor, uniform_B: Tensor) -> Tensor:
    """Pick a candidate per row by inverting the cumulative distribution.

    A number per row, not a generator, decides: so each row can have a stream of its own, and a row draws the same alone and in a batch.

    Args:
        probabilities_BC: Probabilities, descending.
        ids_BC: Their token ids.
        uniform_B: Numbers in [0, 1).

    Returns:
        Token ids, (B,).
    """
    cumulative_BC = probabilities_BC.cumsum(-1)
    target_B1 = uniform_B.to(cumulative_BC)[:, None] * cumulative_BC[:, -1:]
    index_B1 = torch.searchsorted(cumulative_BC, target_B1, right=True)  # the first whose cumulative probability exceeds the target
    last_B1 = (probabilities_BC > 0).sum(-1, keepdim=True) - 1  # rounding may carry the target to the very end
    return ids_BC.gather(1, torch.minimum(index_B1, last_B1)).squeeze(1)


def _renormalise(weights_BC: Tensor) -> Tensor:
    return weights_BC / weights_BC.sum(-1, keepdim=True)
