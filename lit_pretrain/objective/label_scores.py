"""Label scores: what the network says about the labels, computed only when an objective asks."""

from typing import Optional

import torch
from torch import Tensor, nn

from .linear_cross_entropy import linear_cross_entropy, linear_logp


class LabelScores:
    """The last hidden states, the output head and the labels of a micro-batch, with no logits until they are needed.

    Args:
        hidden_BTD: Hidden states after the final norm.
        head_weight_VD: Weight of the output head.
        labels_BT: Target ids; `IGNORE_INDEX` where unsupervised.
        logit_softcap: If given, logits become `cap * tanh(logits / cap)` (Gemma 2).
        score_head: The bias-free head of a reward model, (..., D) to (..., 1).
        teacher: The same of a frozen teacher, for distillation.
        step_counts: `Objective.counts` of the whole optimizer step; None where a batch stands for itself.
    """

    def __init__(
        self,
        hidden_BTD: Tensor,
        head_weight_VD: Tensor,
        labels_BT: Tensor,
        *,
        logit_softcap: float | None = None,
        score_head: Optional[nn.Module] = None,
        teacher: Optional["LabelScores"] = None,
        step_counts: Optional[Tensor] = None,
    ) -> None:
        self.hidden_BTD = hidden_BTD
        self.head_weight_VD = head_weight_VD
        self.labels_BT = labels_BT
        self.logit_softcap = logit_softcap
        self.score_head = score_head
        self.teacher = teacher
        self.step_counts = step_counts

    def cross_entropy(self, *, z_loss: float = 0.0, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of the supervised labels.

        Returns:
            The differentiable sum in nats, z and smoothing terms included, and the detached plain negative log-likelihood per
            token (B, T), fp32 and 0 where ignored.
        """
        total, nll_N = linear_cross_entropy(
            self.hidden_BTD.flatten(0, 1),
            self.head_weight_VD,
            self.labels_BT.flatten(),
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            softcap=self.logit_softcap,
        )
        return total, nll_N.view_as(self.labels_BT)

    def logp(self, labels_BT: Optional[Tensor] = None) -> Tensor:
        """Differentiable log-probability of each label (B, T), in nats, 0 where ignored; of other labels if they are given."""
        labels_BT = self.labels_BT if labels_BT is None else labels_BT
        logp_N = linear_logp(self.hidden_BTD.flatten(0, 1), self.head_weight_VD, labels_BT.flatten(), softcap=self.logit_softcap)
        return logp_N.view_as(labels_BT)

    def score(self, doc_BT: Tensor) -> Tensor:
        """Differentiable score of each row (B,), read at the last token of its sequence (where doc is 0 for the last time)."""
        assert self.score_head is not None, "the stage gives a score head to objectives that need `score`"
        last_B = ((doc_BT == 0).sum(dim=1) - 1).clamp(min=0)
        hidden_BD = self.hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        score_B: Tensor = self.score_head(hidden_BD).squeeze(-1)
        return score_B.to(torch.promote_types(score_B.dtype, torch.float32))
