"""Means: an objective's loss and metrics over batches and ranks, divided once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Sums what an objective reports, by source where it is the loss, and divides once.

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
        for name, shape in (("loss_S", (num_sources,)), ("terms_S", (num_sources,)), ("sums_M2", (len(self.names), 2))):
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
        """`loss`, `loss_S` and the metrics by name; NaN where nothing was seen."""
        named = {name: self.sums_M2[m, 0] / self.sums_M2[m, 1] for m, name in enumerate(self.names)}
        return {"loss": self.loss_S.sum() / self.terms_S.sum(), "loss_S": self.loss_S / self.terms_S, **named}
