"""Focal: an objective in a file outside lit_pretrain."""

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.objective import LabelScores, Objective


class Focal(Objective):
    """Focal loss (Lin et al. 2017, eq. 4): -(1 - p)^gamma log p of each label.

    Args:
        gamma: How much less well-predicted labels count; 0 is cross-entropy.
    """

    needs = frozenset({"labels"})
    metric_names = ("nll",)

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(
        self, scores: LabelScores, batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Score one micro-batch."""
        logp_BT = scores.logp()
        supervised_BT = batch.labels_BT != IGNORE_INDEX
        tokens_B = supervised_BT.sum(dim=1)
        loss_B = (-((1 - logp_BT.exp()) ** self.gamma) * logp_BT * supervised_BT).sum(dim=1)
        nll_2 = torch.stack([-logp_BT.detach().sum(), tokens_B.sum().float()])
        return (
            loss_B.sum(),
            tokens_B.sum(),
            {"loss_B": loss_B.detach(), "tokens_B": tokens_B, "nll": nll_2},
        )
