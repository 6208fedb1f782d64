"""SimPO: preferences learned from log-probabilities per token, without a reference."""

import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import PreferenceBatch
from lit_pretrain.errors import UserError

from .label_scores import LabelScores
from .objective import Objective
from .pairs import LOGP_NAMES, REWARD_NAMES, finish, logp_metrics, reward_metrics, valid_pairs
from .sums import per_token, tokens_of


class SimPO(Objective):
    """Simple preference optimisation (Meng et al. 2024, eq. 6): −log σ(beta × difference of log-probabilities per token − gamma).

    It has no likelihood term: TRL's is `CPOTrainer(loss_type="simpo", cpo_alpha=0)`, whose `cpo_alpha` is 1 unless it is set.

    Args:
        beta: Scale of the rewards; the paper uses 2 to 10.
        gamma: Target margin in units of the reward (the paper's γ; TRL calls it simpo_gamma). The paper tunes gamma / beta
            between 0 and 1.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
    """

    needs = frozenset({"pairs"})
    metric_names = (*REWARD_NAMES, *LOGP_NAMES)

    def __init__(self, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"SimPO: beta must be positive, found {beta}; the paper uses 2 to 10.")
        if not gamma >= 0.0:
            raise UserError(f"SimPO: gamma must be zero or positive, found {gamma}.")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(f"SimPO: label_smoothing must lie in [0, 0.5), found {label_smoothing}.")
        self.beta = beta
        self.gamma = gamma
        self.label_smoothing = label_smoothing

    def forward(self, scores: LabelScores, batch: PreferenceBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        logp_B = scores.logp().sum(dim=1)
        reward_B = self.beta * per_token(logp_B, tokens_of(batch.labels_BT))
        chosen_P, rejected_P = reward_B.chunk(2)
        h_P = chosen_P - rejected_P - self.gamma
        loss_P = -(1.0 - self.label_smoothing) * F.logsigmoid(h_P) - self.label_smoothing * F.logsigmoid(-h_P)
        valid_P = valid_pairs(batch)
        return finish(loss_P, batch, reward_metrics(reward_B, valid_P) | logp_metrics(logp_B, valid_P))

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"beta={self.beta}, gamma={self.gamma}, label_smoothing={self.label_smoothing}"
