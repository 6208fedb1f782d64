"""Objective: what a stage minimises, as a sum and a count and never a mean; and cross-entropy.

Axes: B rows, T tokens, D width, V vocabulary, N flattened tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.linear_cross_entropy import linear_cross_entropy, linear_logp


class LabelScores:
    """Last hidden states, head and labels of a micro-batch; logits are made when they are needed.

    Args:
        hidden_BTD: Hidden states after the final norm.
        head_weight_VD: Weight of the output head.
        labels_BT: Target ids; `IGNORE_INDEX` where unsupervised.
        logit_softcap: If given, logits become `cap * tanh(logits / cap)` (Gemma 2).
        temperature: What logits are divided by, the softcap's outcome included.
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
        temperature: float = 1.0,
        score_head: nn.Module | None = None,
        teacher: "LabelScores | None" = None,
        step_counts: Tensor | None = None,
    ) -> None:
        if temperature != 1.0:
            # The logits need not exist to be divided: c/T tanh(h/T / (c/T)) = c tanh(h/c) / T.
            hidden_BTD = hidden_BTD / temperature
            logit_softcap = None if logit_softcap is None else logit_softcap / temperature
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
        last_B = ((doc_BT == 0).sum(dim=1) - 1).clamp(min=0)
        return self._score(self.hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B])

    def token_scores(self) -> Tensor:
        """Compute the score of each token (B, T)."""
        return self._score(self.hidden_BTD)

    def _score(self, hidden: Tensor) -> Tensor:
        assert self.score_head is not None, (
            "the stage gives a score head to objectives that need `score`"
        )
        # At least fp32: losses take differences of scores, which 16 bits would round away.
        score: Tensor = self.score_head(hidden).squeeze(-1)
        return score.to(torch.promote_types(score.dtype, torch.float32))


def tokens_of(labels_BT: Tensor) -> Tensor:
    """Count the supervised tokens of each row (B,), int64."""
    return (labels_BT != IGNORE_INDEX).sum(dim=1)


def sum_and_count(values: Tensor, mask: Tensor) -> Tensor:
    """Sum the values where the mask is true, and count them: shape (2,), fp32, detached."""
    return torch.stack(
        [
            # Not a product with the mask: what lies outside may be infinite.
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
    """What it computes from, a subset of {"labels", "pairs", "verdicts", "steps", "rollout",
    "ref_logp", "score", "teacher"}: the kind of batch, and what the data or the stage adds to it
    (see `DataContract.provides`).
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

    splits_vocabulary: bool = False
    """Whether it asks for logits through `LabelScores.cross_entropy` and `logp` alone, so that the
    vocabulary may be split over devices (`parallel.tp`).
    """

    splits_rows: bool = False
    """Whether its terms are tokens, each of which counts for itself, so that the tokens of a row
    may be split over devices (`parallel.cp`).
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


def check_sums(objective: Objective, found: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return what an objective's `forward` has found, once it is seen to be what it must be.

    Raises:
        UserError: It is something else, or lacks a metric.
    """
    name = f"model.objective: {type(objective).__name__}.forward"
    if not (isinstance(found, tuple) and len(found) == 3 and isinstance(found[2], dict)):
        raise UserError(
            f"{name} returned {type(found).__name__}; it must return the sum of its terms, their"
            " count, and a dict of metrics (see lit_pretrain.objective.Objective.forward)"
        )
    total, count, metrics = found
    if not (isinstance(total, Tensor) and isinstance(count, Tensor)):
        raise UserError(f"{name}: the sum and the count of its terms must be tensors")
    missing = [
        metric
        for metric in ("loss_B", "tokens_B", *objective.metric_names)
        if metric not in metrics
    ]
    if missing:
        raise UserError(
            f"{name} returned the metrics {', '.join(metrics) or 'of none'}: {', '.join(missing)}"
            " is missing"
        )
    return total, count, metrics


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
    splits_vocabulary = True
    splits_rows = True

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
        tokens_B = tokens_of(batch.labels_BT)
        return (
            total,
            tokens_B.sum(),
            {"nll_BT": nll_BT, "loss_B": nll_BT.sum(dim=1), "tokens_B": tokens_B},
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return f"z_loss={self.z_loss}, label_smoothing={self.label_smoothing}"
