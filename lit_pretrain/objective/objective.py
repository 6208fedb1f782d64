"""Objective: what a stage minimises, as a sum and a count and never a mean.

Axes: B rows, T tokens, D width, V vocabulary, N flattened tokens, S sources, M metrics.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.objective.linear_cross_entropy import linear_cross_entropy, linear_logp


class LabelScores:
    """Last hidden states, head and labels of a micro-batch; logits are made when they are needed.

    Args:
        hidden_BTD: Hidden states after the final norm.
        head_weight_VD: Weight of the output head.
        labels_BT: Target ids; `IGNORE_INDEX` where unsupervised.
        logit_softcap: If given, logits become `cap * tanh(logits / cap)` (Gemma 2).
        score_head: The bias-free head of a reward model, (..., D) to (..., 1).
        teacher: The same of a frozen teacher, for distillation.
        step_counts: `Objective.counts` of the whole optimizer step; None where a batch stands for
            itself.
    """

    def __init__(
        self,
        hidden_BTD: Tensor,
        head_weight_VD: Tensor,
        labels_BT: Tensor,
        *,
        logit_softcap: float | None = None,
        score_head: nn.Module | None = None,
        teacher: "LabelScores | None" = None,
        step_counts: Tensor | None = None,
    ) -> None:
        self.hidden_BTD = hidden_BTD
        self.head_weight_VD = head_weight_VD
        self.labels_BT = labels_BT
        self.logit_softcap = logit_softcap
        self.score_head = score_head
        self.teacher = teacher
        self.step_counts = step_counts

    def cross_entropy(
        self, *, z_loss: float = 0.0, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of the supervised labels.

        Returns:
            The differentiable sum in nats, z and smoothing terms included, and the detached plain
            negative log-likelihood per token (B, T), fp32 and 0 where ignored.
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

    def logp(self, labels_BT: Tensor | None = None) -> Tensor:
        """Compute the log-probability of each label (B, T), in nats, 0 where ignored.

        `labels_BT` replaces the labels of the batch.
        """
        labels_BT = self.labels_BT if labels_BT is None else labels_BT
        logp_N = linear_logp(
            self.hidden_BTD.flatten(0, 1),
            self.head_weight_VD,
            labels_BT.flatten(),
            softcap=self.logit_softcap,
        )
        return logp_N.view_as(labels_BT)

    def score(self, doc_BT: Tensor) -> Tensor:
        """Compute the score of each row (B,), read at the last token of its sequence.

        That is where doc is 0 for the last time.
        """
        assert self.score_head is not None, (
            "the stage gives a score head to objectives that need `score`"
        )
        last_B = ((doc_BT == 0).sum(dim=1) - 1).clamp(min=0)
        hidden_BD = self.hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        score_B: Tensor = self.score_head(hidden_BD).squeeze(-1)
        return score_B.to(torch.promote_types(score_B.dtype, torch.float32))


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


def tokens_of(labels_BT: Tensor) -> Tensor:
    """Count the supervised tokens of each row (B,), int64."""
    return (labels_BT != IGNORE_INDEX).sum(dim=1)


def sum_and_count(values: Tensor, mask: Tensor) -> Tensor:
    """Sum the values where the mask is true, and count them: shape (2,), fp32, detached."""
    return torch.stack(
        [
            torch.where(mask, values.detach(), 0).sum(dtype=torch.float32),
            mask.sum(dtype=torch.float32),
        ]
    )


def per_token(sums_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Divide each row's sum by its tokens; 0 for a row without tokens."""
    return sums_B / tokens_B.clamp(min=1)


class Objective(nn.Module):
    """Base of every objective.

    An objective returns the sum of its terms and how many there were. The stage divides once, by
    the count over the whole optimizer step (all micro-batches, all ranks): a mean of means weighs a
    token by how empty its micro-batch is.
    """

    needs: frozenset[str] = frozenset()
    """What it computes from, a subset of {"labels", "pairs", "verdicts", "rollout", "ref_logp",
    "score", "teacher"}: the kind of batch, and what the data or the stage adds to it (see
    `DataContract.provides`).
    """

    metric_names: tuple[str, ...] = ()
    """Names of the means that `forward` reports beside the loss, in a fixed order."""

    bits_per_byte: bool = False
    """Whether the loss is nats per token of text, from which bits per byte follow; then the
    metrics hold `nll_BT`.
    """

    max_completion_tokens: int | None = None
    """Length by which the objective divides, which must be the rollout's; None if it does not."""

    measured_half: bool = False
    """Whether the second half of the rows is only measured, so that no gradient is computed for
    it.
    """

    def counts(self, batch: Any) -> Tensor | None:
        """Count what `forward` has to know of the whole optimizer step (`LabelScores.step_counts`).

        None if it has to know nothing.

        Two terms that are means over different things (pairs and tokens) cannot share one count.
        Counts are known before anything is computed, so the stage adds them up over all
        micro-batches and ranks, and the smaller term is weighed by their ratio.
        """
        return None

    def start(self, means: dict[str, float], *, tolerance: float) -> str | None:
        """Say what is wrong with the first step of a fresh network, judged by its means, or None.

        Args:
            means: `loss` and the metrics of the first step.
            tolerance: By how much log-probabilities of one token may differ for reasons of
                precision.
        """
        return None

    def advantages(self, reward_B: Tensor, group_B: Tensor) -> Tensor:
        """Compute how much better than its group each answer is (`PolicyBatch.advantage_B`).

        Only objectives that need a rollout have it.

        Args:
            reward_B: Reward of each answer.
            group_B: Number of its group, from 0.
        """
        raise NotImplementedError

    def forward(self, scores: LabelScores, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Score one micro-batch.

        Args:
            scores: What the network says about the labels of the batch; computes only what is asked
                for.
            batch: The micro-batch, of the kind that `needs` names.

        Returns:
            The numerator (a differentiable fp32 sum), the denominator (count of terms) and detached
            metrics, which are sums and may be added over micro-batches and ranks: per row the loss
            to report `loss_B`, the supervised tokens `tokens_B` and, where the terms of the loss
            are not tokens, their number `terms_B`; and for each of `metric_names` a sum and a
            count, shape (2,).
        """
        raise NotImplementedError
