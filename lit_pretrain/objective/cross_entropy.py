"""Cross-entropy: the sum of -log p(label) in nats, and bits per byte, which tokenizers share.

Axes: B rows, T tokens, S sources, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.objective import LabelScores, Objective


class BitsPerByte(Metric):
    """Sums of nats, tokens and bytes per source over batches and ranks, divided once.

    Bits per byte is `sum(nats) / ln 2 / sum(bytes)`, where a token's bytes are those of the text it
    stands for; tokens that stand for no text (separators) have zero bytes and count with their nats
    only.

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
            self.add_state(
                name, torch.zeros(num_sources, dtype=torch.float64), dist_reduce_fx="sum"
            )

    def update(
        self, nll_BT: Tensor, labels_BT: Tensor, source_B: Tensor, token_bytes_V: Tensor
    ) -> None:
        """Add a batch.

        Args:
            nll_BT: Negative log-likelihood per token in nats, 0 where ignored.
            labels_BT: Target ids, `IGNORE_INDEX` where unsupervised.
            source_B: Source of each row, in [0, num_sources).
            token_bytes_V: Bytes of text that each token of the vocabulary stands for.
        """
        valid_BT = labels_BT != IGNORE_INDEX
        bytes_BT = token_bytes_V[torch.where(valid_BT, labels_BT, 0)] * valid_BT
        self.nats_S.index_add_(
            0, source_B, torch.where(valid_BT, nll_BT, 0.0).sum(dim=1, dtype=torch.float64)
        )
        self.tokens_S.index_add_(0, source_B, valid_BT.sum(dim=1).double())
        self.bytes_S.index_add_(0, source_B, bytes_BT.sum(dim=1).double())

    def compute(self) -> dict[str, Tensor]:
        """Return `loss` (nats per token) and `bits_per_byte`, and per source with the suffix `_S`.

        NaN where nothing was seen.
        """
        ln2 = math.log(2.0)
        return {
            "loss": self.nats_S.sum() / self.tokens_S.sum(),
            "bits_per_byte": self.nats_S.sum() / ln2 / self.bytes_S.sum(),
            "loss_S": self.nats_S / self.tokens_S,
            "bits_per_byte_S": self.nats_S / ln2 / self.bytes_S,
        }


class CrossEntropy(Objective):
    """Next-token cross-entropy, for pretraining and fine-tuning alike: only the labels differ.

    Args:
        z_loss: Weight of the PaLM auxiliary loss, `z_loss * log(Z)^2` per token, which keeps the
            softmax normaliser near 1 (Chowdhery et al. 2022, section 5; they use 1e-4). 0 switches
            it off.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1).
    """

    needs = frozenset({"labels"})
    bits_per_byte = True

    def __init__(self, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not z_loss >= 0.0:
            raise UserError(
                f"CrossEntropy: z_loss must be zero or positive, found {z_loss}; PaLM uses 1e-4."
            )
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(
                f"CrossEntropy: label_smoothing must lie in [0, 1), found {label_smoothing}."
            )
        self.z_loss = z_loss
        self.label_smoothing = label_smoothing

    def forward(
        self, scores: LabelScores, batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the supervised tokens.

        Returns:
            The loss sum in nats (with its z and smoothing terms), the count of supervised tokens,
            and the metrics `nll_BT` (plain nats per token, without z-loss and smoothing; 0 where
            ignored), `loss_B` and `tokens_B` (its sum and the count of supervised tokens per row).
        """
        total, nll_BT = scores.cross_entropy(
            z_loss=self.z_loss, label_smoothing=self.label_smoothing
        )
        tokens_B = (batch.labels_BT != IGNORE_INDEX).sum(dim=1)
        return (
            total,
            tokens_B.sum(),
            {"nll_BT": nll_BT, "loss_B": nll_BT.sum(dim=1), "tokens_B": tokens_B},
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return f"z_loss={self.z_loss}, label_smoothing={self.label_smoothing}"
