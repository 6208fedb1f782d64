"""Process reward models: a verdict on every step of an answer, read where the step ends.

Axes: B rows, T tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, StepwiseBatch
from lit_pretrain.objective.objective import LabelScores, Objective, sum_and_count


class ProcessRewardModel(Objective):
    """Cross-entropy of the verdicts on the steps of an answer (Lightman et al. 2023).

    −log σ(score) for a right step and −log σ(−score) for a wrong one, with the score that the
    bias-free head of a reward model gives the last token of the step's separator. σ(score) is the
    probability that the step is right.

    TRL's PRMTrainer classifies the same tokens with two outputs, of which softmax sees only the
    difference: with score = z₁ − z₀ loss and gradient of the network are the same. Its head has a
    bias besides.
    """

    needs = frozenset({"steps", "score"})
    metric_names = ("steps/accuracy", "steps/share_right", "steps/score_right", "steps/score_wrong")

    def forward(
        self, scores: LabelScores, batch: StepwiseBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the steps; the count is that of the steps.

        The metrics are the share of steps judged as labelled, the share labelled right, and the
        mean probability of being right that right and wrong steps are given.
        """
        score_BT = scores.token_scores()
        judged_BT = batch.right_BT != IGNORE_INDEX
        right_BT = batch.right_BT == 1
        loss_BT = F.binary_cross_entropy_with_logits(
            score_BT, right_BT.to(score_BT.dtype), reduction="none"
        )
        loss_BT = torch.where(judged_BT, loss_BT, 0.0)
        probability_BT = score_BT.sigmoid()
        steps_B = judged_BT.sum(dim=1)
        return (
            loss_BT.sum(),
            steps_B.sum(),
            {
                "loss_B": loss_BT.detach().sum(dim=1),
                "tokens_B": steps_B,
                "steps/accuracy": sum_and_count(((score_BT > 0) == right_BT).float(), judged_BT),
                "steps/share_right": sum_and_count(right_BT.float(), judged_BT),
                "steps/score_right": sum_and_count(probability_BT, judged_BT & right_BT),
                "steps/score_wrong": sum_and_count(probability_BT, judged_BT & ~right_BT),
            },
        )
