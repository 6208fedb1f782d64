"""Sampling: from logits to the next token, by temperature, top-k and top-p."""

from typing import Optional

import torch
from torch import Tensor

from lit_pretrain.errors import UserError


def check_sampling(*, temperature: float, top_k: Optional[int], top_p: Optional[float]) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UserError: Names the setting, its value and its range.
    """
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 (greedy) or positive")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1, or left out")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must be above 0 and at most 1, or left out")


def probabilities(
    logits_BV: Tensor, *, temperature: float, top_k: Optional[int] = None, top_p: Optional[float] = None
) -> Tensor:
    """The distribution that is sampled from, (B, V), fp32 or wider.

    Top-k keeps the k likeliest tokens; top-p then keeps the fewest of them whose probabilities (after temperature and top-k) reach p
    (Holtzman et al. 2020); ties at either border go to the smaller id. At temperature 0 all weight lies on the likeliest token.

    Args:
        logits_BV: Logits.
        temperature: Divides the logits.
        top_k: Tokens kept, or None for all.
        top_p: Probability mass kept, or None for all.
    """
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(1, keepdim=True), 1.0)
    sorted_BV, order_BV = torch.sort(logits_BV / temperature, dim=1, descending=True, stable=True)
    if top_k is not None:
        sorted_BV[:, top_k:] = float("-inf")
    p_BV = sorted_BV.softmax(1)
    if top_p is not None:
        before_BV = p_BV.cumsum(1) - p_BV
        p_BV = p_BV.masked_fill(before_BV >= top_p, 0.0)
        p_BV = p_BV / p_BV.sum(1, keepdim=True)
    return torch.zeros_like(p_BV).scatter_(1, order_BV, p_BV)


def sample(
    logits_BV: Tensor,
    generators: list[torch.Generator],
    *,
    temperature: float,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
) -> list[int]:
    """Draw one token for every row, each from its own generator, so that a row does not depend on its neighbours.

    Args:
        logits_BV: Logits.
        generators: One per row, on the CPU.
        temperature: See `probabilities`, as for the rest.
        top_k: As above.
        top_p: As above.
    """
    p_BV = probabilities(logits_BV, temperature=temperature, top_k=top_k, top_p=top_p).cpu()
    if temperature == 0:
        return [int(i) for i in p_BV.argmax(1)]
    return [int(torch.multinomial(p_V, 1, generator=g)) for p_V, g in zip(p_BV, generators, strict=True)]
