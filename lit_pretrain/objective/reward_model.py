"""Reward model: a scalar score per answer, learned from pairs.

Axes: P pairs, B = 2P rows, T tokens.
"""

import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import PreferenceBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.objective import LabelScores, Objective, sum_and_count
from lit_pretrain.objective.preference import REWARD_NAMES, finish, reward_metrics, valid_pairs


class RewardModel(Objective):
    """Bradley–Terry loss of a reward model (Ouyang et al. 2022, eq. 1).

    −log σ(score of the chosen − score of the rejected − margin).

    Where the data gives a margin it is subtracted (Touvron et al. 2023, eq. 2), as TRL does. Scores
    come from a bias-free head that reads the hidden state of the last token.

    Args:
        centering: Weight of (score of the chosen + score of the rejected)², which keeps scores
            around zero, as the loss alone fixes differences only (Eisenstein et al. 2023; 0.01 is
            usual; TRL: center_rewards_coefficient).
    """

    needs = frozenset({"pairs", "score"})
    metric_names = (*REWARD_NAMES, "rewards/squared_mean")

    def __init__(self, centering: float = 0.0) -> None:
        super().__init__()
        if not centering >= 0.0:
            raise UserError(
                f"RewardModel: centering must be zero or positive, found {centering}; 0.01 is"
                " usual."
            )
        self.centering = centering

    def forward(
        self, scores: LabelScores, batch: PreferenceBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        score_B = scores.score(batch.doc_BT)
        chosen_P, rejected_P = score_B.chunk(2)
        margin_P: Tensor | None = batch.margin_P
        difference_P = chosen_P - rejected_P
        loss_P = -F.logsigmoid(difference_P if margin_P is None else difference_P - margin_P)
        squares_P = (chosen_P + rejected_P).square()
        if self.centering:
            loss_P = loss_P + self.centering * squares_P
        valid_P = valid_pairs(batch)
        metrics = reward_metrics(score_B, valid_P)
        return finish(
            loss_P,
            batch,
            metrics | {"rewards/squared_mean": sum_and_count(squares_P / 4.0, valid_P)},
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return f"centering={self.centering}"
