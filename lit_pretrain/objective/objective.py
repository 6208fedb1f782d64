"""Objective: what a stage minimises, as a sum and a count and never a mean."""

from typing import Any, Optional

from torch import Tensor, nn

from .label_scores import LabelScores


class Objective(nn.Module):
    """Base of every objective.

    An objective returns the sum of its terms and how many there were. The stage divides once, by the count over the whole
    optimizer step (all micro-batches, all ranks): a mean of means weighs a token by how empty its micro-batch is.
    """

    needs: frozenset[str] = frozenset()
    """What it computes from, a subset of {"labels", "pairs", "verdicts", "rollout", "ref_logp", "score", "teacher"}: the kind of batch,
    and what the data or the stage adds to it (see `DataContract.provides`)."""

    metric_names: tuple[str, ...] = ()
    """Names of the means that `forward` reports beside the loss, in a fixed order."""

    bits_per_byte: bool = False
    """Whether the loss is nats per token of text, from which bits per byte follow; then the metrics hold `nll_BT`."""

    measured_half: bool = False
    """Whether the second half of the rows is only measured, so that no gradient is computed for it."""

    def counts(self, batch: Any) -> Optional[Tensor]:
        """Counts that `forward` wants to know of the whole optimizer step (`LabelScores.step_counts`); None if it wants none.

        Two terms that are means over different things (pairs and tokens) cannot share one count. Counts are known before anything is
        computed, so the stage adds them up over all micro-batches and ranks, and the smaller term is weighed by their ratio.
        """
        return None

    def start(self, means: dict[str, float], *, tolerance: float) -> Optional[str]:
        """What is wrong with the first step of a fresh network, judged by its means; None if nothing is known to be.

        Args:
            means: `loss` and the metrics of the first step.
            tolerance: By how much log-probabilities of one token may differ for reasons of precision.
        """
        return None

    def advantages(self, reward_B: Tensor, group_B: Tensor) -> Tensor:
        """How much better than its group each sampled answer is (`PolicyBatch.advantage_B`); of objectives that need a rollout.

        Args:
            reward_B: Reward of each answer.
            group_B: Number of its group, from 0.
        """
        raise NotImplementedError

    def forward(self, scores: LabelScores, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Score one micro-batch.

        Args:
            scores: What the network says about the labels of the batch; computes only what is asked for.
            batch: The micro-batch, of the kind that `needs` names.

        Returns:
            The numerator (a differentiable fp32 sum), the denominator (count of terms) and detached metrics, which are sums and may be
            added over micro-batches and ranks: per row the loss to report `loss_B`, the supervised tokens `tokens_B` and, where the
            terms of the loss are not tokens, their number `terms_B`; and for each of `metric_names` a sum and a count, shape (2,).
        """
        raise NotImplementedError
