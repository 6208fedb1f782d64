"""Objective: what a stage minimises, as a sum and a count and never a mean."""

from typing import ClassVar

from torch import Tensor, nn

from lit_pretrain.batch import Batch

from .label_scores import LabelScores


class Objective(nn.Module):
    """Base of every objective.

    An objective returns the sum of its terms and how many there were. The stage divides once, by the count over the whole
    optimizer step (all micro-batches, all ranks): a mean of means weighs a token by how empty its micro-batch is.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the stage must provide, a subset of {"labels", "ref_logp", "score", "rollout"}."""

    def forward(self, scores: LabelScores, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Score one micro-batch.

        Args:
            scores: What the network says about the labels of the batch; computes only what is asked for.
            batch: The micro-batch.

        Returns:
            The numerator (a differentiable fp32 sum), the denominator (int64 count of terms) and detached metrics per row or
            token, which are sums and may be added over micro-batches and ranks.
        """
        raise NotImplementedError
