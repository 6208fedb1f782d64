"""CPO: DPO with a uniform reference, held in place by the likelihood of the chosen answers."""

from typing import Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import PreferenceBatch
from lit_pretrain.errors import UserError

from .label_scores import LabelScores
from .objective import Objective
from .pairs import LOGP_NAMES, REWARD_NAMES, chosen_nll, finish, logp_metrics, pair_and_token_counts, reward_metrics, valid_pairs


class CPO(Objective):
    """Contrastive preference optimisation (Xu et al. 2024, eq. 3): −log σ(beta × difference of log-probabilities) + NLL of the chosen.

    The NLL is a mean per token, as in TRL; the paper's expectation is per sequence.

    Args:
        beta: Scale of the log-probabilities.
        variant: `sigmoid` is the paper's; `hinge` is max(0, 1 − h) (SLiC-HF, Zhao et al. 2023).
        nll_weight: Weight of the chosen answers' cross-entropy (TRL: cpo_alpha).
        label_smoothing: Probability that a label is flipped, in [0, 0.5); for `sigmoid`.
    """

    needs = frozenset({"pairs"})

    def __init__(
        self, beta: float = 0.1, variant: Literal["sigmoid", "hinge"] = "sigmoid", nll_weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"CPO: beta must be positive, found {beta}; 0.1 is usual.")
        if not nll_weight >= 0.0:
            raise UserError(f"CPO: nll_weight must be zero or positive, found {nll_weight}.")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(f"CPO: label_smoothing must lie in [0, 0.5), found {label_smoothing}.")
        if label_smoothing and variant == "hinge":
            raise UserError(f"CPO: variant 'hinge' knows no label_smoothing (found {label_smoothing}); use sigmoid.")
        self.beta = beta
        self.variant = variant
        self.nll_weight = nll_weight
        self.label_smoothing = label_smoothing
        self.metric_names = (*REWARD_NAMES, *LOGP_NAMES, "nll/chosen")

    def counts(self, batch: PreferenceBatch) -> Optional[Tensor]:
        """Pairs and chosen tokens, for the likelihood term."""
        return pair_and_token_counts(batch, batch.labels_BT)

    def forward(self, scores: LabelScores, batch: PreferenceBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        logp_BT = scores.logp()
        logp_B = logp_BT.sum(dim=1)
        reward_B = self.beta * logp_B
        h_P = reward_B.chunk(2)[0] - reward_B.chunk(2)[1]
        if self.variant == "hinge":
            loss_P = torch.relu(1.0 - h_P)
        else:
            loss_P = -(1.0 - self.label_smoothing) * F.logsigmoid(h_P) - self.label_smoothing * F.logsigmoid(-h_P)
        nll_P, nll = chosen_nll(logp_BT, batch.labels_BT, batch, scores)
        valid_P = valid_pairs(batch)
        metrics = reward_metrics(reward_B, valid_P) | logp_metrics(logp_B, valid_P) | {"nll/chosen": nll}
        return finish(loss_P + self.nll_weight * nll_P, batch, metrics)

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"beta={self.beta}, variant={self.variant!r}, nll_weight={self.nll_weight}, label_smoothing={self.label_smoothing}"
