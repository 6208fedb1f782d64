"""New tokens on trained weights: rows of embeddings and head for ids that the parent did not have.

A row is the mean of the rows of the tokens that the parent spelt the new one by (Hewitt 2021,
"Initializing new word embeddings for pretrained language models", shows why not to draw it: a logit
far from the others changes the probabilities of all old tokens). Rows that only fill up the
vocabulary to its multiple are the mean of all. Old rows, and so the old logits, stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = re.compile(r"(?:token_embedding|head|value_embeddings\.\d+)\.weight")
"""Tensors of a network with a row for each token id."""


@dataclass(frozen=True)
class NewTokens:
    """Token ids that a stage adds to those of its parent."""

    first: int
    """The first new id; the others follow it."""
    spelt: tuple[tuple[int, ...], ...]
    """For each of them, the ids by which the parent spelt it."""


def has_token_rows(name: str) -> bool:
    """Tell whether a tensor of a network has a row for each token id."""
    return _ROWS.fullmatch(name) is not None


def extend_rows(weight: Tensor, size: int, first: int, spelt: Sequence[Sequence[int]]) -> Tensor:
    """Give a matrix rows for new tokens.

    Args:
        weight: (V, D).
        size: Rows of the result, at least V.
        first: The first new id. It may lie below V, among rows that only fill up the vocabulary.
        spelt: Ids of old tokens for each new one; their rows are averaged.
    """
    extended = weight.new_empty((size, *weight.shape[1:]))
    extended[: len(weight)] = weight
    extended[len(weight) :] = weight.float().mean(0).to(weight.dtype)
    for number, ids in enumerate(spelt):
        extended[first + number] = weight[list(ids)].float().mean(0).to(weight.dtype)
    return extended


@torch.no_grad()
def extend_weights(
    weights: Mapping[str, Tensor], new: NewTokens, vocab_size: int
) -> dict[str, Tensor]:
    """Give all tensors of a network with a row for each token rows for the new ones."""
    return {
        name: extend_rows(tensor, max(vocab_size, len(tensor)), new.first, new.spelt)
        if has_token_rows(name)
        else tensor
        for name, tensor in weights.items()
    }
