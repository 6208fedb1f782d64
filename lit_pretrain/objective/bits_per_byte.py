"""Bits per byte: loss that can be compared across tokenizers, per source and over all."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.errors import UserError


class BitsPerByte(Metric):
    """Sums nats, tokens and bytes per source over batches and ranks, and divides once.

    Bits per byte is `sum(nats) / ln 2 / sum(bytes)`, where a token's bytes are those of the text it stands for; tokens that
    stand for no text (separators) have zero bytes and count with their nats only.

    Args:
        num_sources: How many sources the mixture has.
        kwargs: Passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    nats_S: Tensor
    tokens_S: Tensor
    bytes_S: Tensor

    def __init__(self, num_sources: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_sources < 1:
            raise UserError(f"BitsPerByte: num_sources must be at least 1, found {num_sources}.")
        self.num_sources = num_sources
        # fp64: an fp32 running sum of nats stalls after some ten million tokens.
        for name in ("nats_S", "tokens_S", "bytes_S"):
            self.add_state(name, torch.zeros(num_sources, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll_BT: Tensor, labels_BT: Tensor, source_B: Tensor, token_bytes_V: Tensor) -> None:
        """Add a batch.

        Args:
            nll_BT: Negative log-likelihood per token in nats, 0 where ignored.
            labels_BT: Target ids, `IGNORE_INDEX` where unsupervised.
            source_B: Source of each row, in [0, num_sources).
            token_bytes_V: Bytes of text that each token of the vocabulary stands for.
        """
        valid_BT = labels_BT != IGNORE_INDEX
        bytes_BT = token_bytes_V[torch.where(valid_BT, labels_BT, 0)] * valid_BT
        self.nats_S.index_add_(0, source_B, torch.where(valid_BT, nll_BT, 0.0).sum(dim=1, dtype=torch.float64))
        self.tokens_S.index_add_(0, source_B, valid_BT.sum(dim=1).double())
        self.bytes_S.index_add_(0, source_B, bytes_BT.sum(dim=1).double())

    def compute(self) -> dict[str, Tensor]:
        """Return `loss` (nats per token), `bits_per_byte`, and the same per source with the suffix `_S`; NaN where nothing was seen."""
        ln2 = math.log(2.0)
        return {
            "loss": self.nats_S.sum() / self.tokens_S.sum(),
            "bits_per_byte": self.nats_S.sum() / ln2 / self.bytes_S.sum(),
            "loss_S": self.nats_S / self.tokens_S,
            "bits_per_byte_S": self.nats_S / ln2 / self.bytes_S,
        }
