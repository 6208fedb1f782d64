"""Sums of what objectives report: over an optimizer step, and over an evaluation.

Means are taken once, at the end: a mean of means would weigh a token by how empty its batch is.

Axes: B rows, T tokens, V vocabulary, S sources, M metrics; 2 is (sum, count).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.errors import UserError


class StepSums:
    """Sums over the micro-batches of one optimizer step on one rank.

    They are kept on the device, and nobody reads them until a window of steps ends.

    Args:
        names: The objective's `metric_names`.
        sources: How many sources the data has.
        device: Where the sums are kept.
    """

    def __init__(self, names: Sequence[str], sources: int, device: torch.device) -> None:
        self.names = tuple(names)
        # fp32 by name: in bf16-true the default is bf16, which counts to 256.
        self.nats_S, self.tokens_S, self.terms_S = (
            torch.zeros(sources, device=device, dtype=torch.float32) for _ in range(3)
        )
        self.means_M2 = torch.zeros(len(names), 2, device=device, dtype=torch.float32)

    def add(self, metrics: dict[str, Tensor], source_B: Tensor) -> None:
        """Add what an objective returned for one micro-batch."""
        self.nats_S.index_add_(0, source_B, metrics["loss_B"].detach().float())
        self.tokens_S.index_add_(0, source_B, metrics["tokens_B"].float())
        self.terms_S.index_add_(0, source_B, metrics.get("terms_B", metrics["tokens_B"]).float())
        if self.names:
            self.means_M2 += torch.stack([metrics[name] for name in self.names]).float()

    def as_dict(self) -> dict[str, Tensor]:
        """Return loss, terms and supervised tokens by source, and sum and count of each metric."""
        return {
            "nats_S": self.nats_S,
            "tokens_S": self.tokens_S,
            "terms_S": self.terms_S,
            "means_M2": self.means_M2,
        }

    def means(self, total: Tensor) -> dict[str, float]:
        """Turn the sum of `packed()` over ranks into numbers; NaN where nothing was counted."""
        loss, terms, tokens, *rest = total.tolist()
        pairs = zip(self.names, rest[::2], rest[1::2], strict=True)
        found = {
            "loss": (loss, terms),
            **{name: (value, count) for name, value, count in pairs},
            "tokens_per_term": (tokens, terms),
        }
        return {
            name: value / count if count else float("nan") for name, (value, count) in found.items()
        }

    def packed(self) -> Tensor:
        """Pack loss, terms, tokens and metrics into one fp64 tensor, to be reduced at once."""
        return torch.cat(
            [
                torch.stack([self.nats_S.sum(), self.terms_S.sum(), self.tokens_S.sum()]),
                self.means_M2.flatten(),
            ]
        ).double()


class Means(Metric):
    """Sums of what an objective reports, by source where it is the loss, divided once.

    Args:
        names: The objective's `metric_names`.
        num_sources: How many sources the data has.
        kwargs: Passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    loss_S: Tensor
    terms_S: Tensor
    sums_M2: Tensor

    def __init__(self, names: Sequence[str], num_sources: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        # fp64, as in BitsPerByte: an fp32 running sum stalls.
        for name, shape in (
            ("loss_S", (num_sources,)),
            ("terms_S", (num_sources,)),
            ("sums_M2", (len(self.names), 2)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, metrics: dict[str, Tensor], source_B: Tensor) -> None:
        """Add what an objective returned for a batch.

        Args:
            metrics: The third value of `Objective.forward`.
            source_B: Source of each row.
        """
        self.loss_S.index_add_(0, source_B, metrics["loss_B"].double())
        self.terms_S.index_add_(0, source_B, metrics.get("terms_B", metrics["tokens_B"]).double())
        if self.names:
            self.sums_M2 += torch.stack([metrics[name] for name in self.names]).double()

    def compute(self) -> dict[str, Tensor]:
        """Return `loss`, `loss_S` and the metrics by name; NaN where nothing was seen."""
        named = {name: self.sums_M2[m, 0] / self.sums_M2[m, 1] for m, name in enumerate(self.names)}
        return {
            "loss": self.loss_S.sum() / self.terms_S.sum(),
            "loss_S": self.loss_S / self.terms_S,
            **named,
        }


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
        # Where nothing is supervised the label is no id: 0 stands in for it, and counts nothing.
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
