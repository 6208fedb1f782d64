"""Sampling: from the logits of the next token to a token.

Axes: B rows, C candidates, V vocabulary; 1 is an axis that is kept.
"""

import torch
from torch import Tensor

from lit_pretrain.errors import UserError


def check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
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
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """List the tokens that may come next and their probabilities.

    The temperature is applied first; each filter then sees the renormalised survivors of the one
    before it. Without filters (`top_p` 1 and `min_p` 0 are none) nothing is sorted: a sort of the
    vocabulary took a tenth of the time of a token of a small network.

    Args:
        logits_BV: Logits of the next token.
        temperature: Divides the logits; 0 leaves the likeliest token alone (on a tie the lowest
            id).
        top_k: Keep so many of the likeliest tokens.
        top_p: Keep the fewest tokens that together reach this probability (Holtzman et al. 2020).
        min_p: Keep the tokens whose probability is at least this fraction of the likeliest one's
            (Nguyen et al. 2024).

    Returns:
        Probabilities, fp32 or better, zero for what a filter removed; and token ids, likeliest
        first if there is a filter, else in order. Both (B, C) with C at most V.

    Raises:
        UserError: If a row of logits holds NaN or only infinities.
    """
    check_sampling(temperature, top_k, top_p, min_p)
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    likeliest_B1 = logits_BV.argmax(-1, keepdim=True)  # the first of several, and NaN before all
    highest_B1 = logits_BV.gather(1, likeliest_B1)
    if not bool(torch.isfinite(highest_B1).all()):
        raise UserError(
            "the model's logits are not finite: its weights are broken, or its precision is too low"
        )
    if temperature == 0 or top_k == 1:
        return torch.ones_like(highest_B1), likeliest_B1
    top_p, min_p = (
        top_p if top_p != 1 else None,
        min_p or None,
    )  # these remove nothing, but for what rounding would
    if top_k is None and top_p is None and min_p is None:
        ids_BV = torch.arange(logits_BV.shape[1], device=logits_BV.device).expand_as(logits_BV)
        # Less the highest logit before the division, which would overflow at a low temperature.
        return ((logits_BV - highest_B1) / temperature).softmax(-1), ids_BV
    logits_BC, ids_BC = _likeliest(logits_BV, top_k)
    probabilities_BC = ((logits_BC - highest_B1) / temperature).softmax(-1)
    if top_p is not None:
        # By what lies before each token, so that the likeliest one always stays.
        before_BC = probabilities_BC.cumsum(-1) - probabilities_BC
        probabilities_BC = _renormalise(probabilities_BC.masked_fill(before_BC >= top_p, 0.0))
    if min_p is not None:
        probabilities_BC = _renormalise(
            probabilities_BC.masked_fill(probabilities_BC < min_p * probabilities_BC[:, :1], 0.0)
        )
    return probabilities_BC, ids_BC


def draw(probabilities_BC: Tensor, ids_BC: Tensor, uniform_B: Tensor) -> Tensor:
    """Pick a candidate per row by inverting the cumulative distribution.

    A number per row, not a generator, decides: so each row can have a stream of its own, and a row
    draws the same alone and in a batch.

    Args:
        probabilities_BC: Probabilities of the candidates.
        ids_BC: Their token ids.
        uniform_B: Numbers in [0, 1).

    Returns:
        Token ids, (B,).
    """
    if ids_BC.shape[1] == 1:
        return ids_BC.squeeze(1)
    cumulative_BC = probabilities_BC.cumsum(-1)
    # Of the sum as it was rounded, which need not be 1.
    target_B1 = uniform_B.to(cumulative_BC)[:, None] * cumulative_BC[:, -1:]
    index_B1 = torch.searchsorted(
        cumulative_BC, target_B1, right=True
    )  # the first whose cumulative probability exceeds the target
    # rounding may carry the target to the very end, where candidates may be that a filter removed
    places_C = torch.arange(ids_BC.shape[1], device=ids_BC.device)
    last_B1 = torch.where(probabilities_BC > 0, places_C, 0).amax(-1, keepdim=True)
    return ids_BC.gather(1, torch.minimum(index_B1, last_B1)).squeeze(1)


def _likeliest(logits_BV: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Find the k highest logits, descending, and their ids.

    Of equal logits the lowest ids win, so that every device keeps the same.
    """
    ids_BC = None
    if k is not None and k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
        above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
        keep_BV = above_BV | (
            equal_BV & (equal_BV.cumsum(-1) <= k - above_BV.sum(-1, keepdim=True))
        )
        ids_BC = keep_BV.nonzero()[:, 1].view(-1, k)
        logits_BV = logits_BV.gather(1, ids_BC)
    logits_BC, order_BC = logits_BV.sort(dim=-1, descending=True, stable=True)
    return logits_BC, order_BC if ids_BC is None else ids_BC.gather(1, order_BC)


def _renormalise(weights_BC: Tensor) -> Tensor:
    return weights_BC / weights_BC.sum(-1, keepdim=True)
