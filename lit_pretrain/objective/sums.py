"""Sums: what objectives add up, with rows that only pad a batch left out."""

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX


def tokens_of(labels_BT: Tensor) -> Tensor:
    """Supervised tokens of each row (B,), int64."""
    return (labels_BT != IGNORE_INDEX).sum(dim=1)


def sum_and_count(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the values where the mask is true, and how many there are: shape (2,), fp32, detached."""
    return torch.stack([torch.where(mask, values.detach(), 0).sum(dtype=torch.float32), mask.sum(dtype=torch.float32)])


def per_token(sums_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Mean per token of each row's sum; 0 for a row without tokens."""
    return sums_B / tokens_B.clamp(min=1)
