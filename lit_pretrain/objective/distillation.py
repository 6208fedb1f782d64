"""Distillation: a student learns a teacher's distribution over the next token, and not the one token that came."""

from typing import Union

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch, DistillBatch
from lit_pretrain.errors import UserError

from .divergence import Kind, divergence, top_k_divergence
from .label_scores import LabelScores
from .objective import Objective
from .sums import sum_and_count, tokens_of


class Distillation(Objective):
    """Divergence from a teacher, at every supervised position (Hinton et al. 2015; Agarwal et al. 2024, eq. 1).

    The teacher is a column of the data (its K likeliest tokens) or a frozen network over the same vocabulary, `model.teacher`.

    Args:
        kind: `forward_kl` KL(teacher‖student), which covers all that the teacher says; `reverse_kl` KL(student‖teacher), which keeps to
            what the teacher finds likely (Gu et al. 2024); `jsd`, between them.
        jsd_beta: Weight of the teacher in the mixture of `jsd`, in (0, 1).
        temperature: Divides the logits of both. Hinton et al. multiply the loss by its square, we, as TRL, do not.
        label_weight: Weight of the labels' own cross-entropy; the divergence has the rest, 1 − label_weight.
    """

    needs = frozenset({"labels", "teacher"})
    metric_names = ("divergence", "nll")

    def __init__(self, kind: Kind = "forward_kl", jsd_beta: float = 0.5, temperature: float = 1.0, label_weight: float = 0.0) -> None:
        super().__init__()
        if not 0.0 < jsd_beta < 1.0:
            raise UserError(f"Distillation: jsd_beta must lie between 0 and 1, found {jsd_beta}; its ends are forward_kl and reverse_kl.")
        if not temperature > 0.0:
            raise UserError(f"Distillation: temperature must be positive, found {temperature}.")
        if not 0.0 <= label_weight < 1.0:
            raise UserError(f"Distillation: label_weight must lie in [0, 1), found {label_weight}; 1 would be CrossEntropy.")
        self.kind: Kind = kind
        self.jsd_beta = jsd_beta
        self.temperature = temperature
        self.label_weight = label_weight

    def forward(self, scores: LabelScores, batch: Union[Batch, DistillBatch]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the divergence of the supervised positions; the count is theirs."""
        mask_BT = batch.labels_BT != IGNORE_INDEX
        settings = {"kind": self.kind, "jsd_beta": self.jsd_beta, "temperature": self.temperature}
        if isinstance(batch, DistillBatch):
            found_BT = top_k_divergence(scores, batch.teacher_token_BTK, batch.teacher_logp_BTK, **settings)  # type: ignore[arg-type]
        else:
            assert scores.teacher is not None, "the stage brings a teacher to objectives that need one"
            found_BT = divergence(scores, scores.teacher, **settings)  # type: ignore[arg-type]
        found_BT = torch.where(mask_BT, found_BT, 0.0)
        if self.label_weight:
            total, nll_BT = scores.cross_entropy()
            numerator = (1.0 - self.label_weight) * found_BT.sum() + self.label_weight * total
        else:
            with torch.no_grad():
                nll_BT = scores.cross_entropy()[1]
            numerator = found_BT.sum()
        loss_BT = (1.0 - self.label_weight) * found_BT.detach() + self.label_weight * nll_BT
        tokens_B = tokens_of(batch.labels_BT)
        metrics = {"divergence": sum_and_count(found_BT, mask_BT), "nll": sum_and_count(nll_BT, mask_BT)}
        return numerator, tokens_B.sum(), {"loss_B": loss_BT.sum(dim=1), "tokens_B": tokens_B, **metrics}

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"kind={self.kind!r}, jsd_beta={self.jsd_beta}, temperature={self.temperature}, label_weight={self.label_weight}"
