"""ORPO: supervised fine-tuning and an odds ratio in one objective, without a reference."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, PreferenceBatch
from lit_pretrain.errors import UserError

from .label_scores import LabelScores
from .objective import Objective
from .pairs import LOGP_NAMES, REWARD_NAMES, chosen_nll, finish, logp_metrics, pair_and_token_counts, reward_metrics, valid_pairs
from .sums import per_token, sum_and_count, tokens_of


class ORPO(Objective):
    """Odds ratio preference optimisation (Hong et al. 2024, eqs. 6 and 7): NLL of prompt and chosen answer − beta × log σ(log odds ratio).

    The NLL is over prompt *and* chosen answer, as in the authors' code and TRL; the odds are those of the answers alone, from their
    log-probabilities per token.

    Args:
        beta: Weight of the odds ratio (the paper's λ).
    """

    needs = frozenset({"pairs"})
    metric_names = (*REWARD_NAMES, *LOGP_NAMES, "nll/chosen", "log_odds_ratio")

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"ORPO: beta must be positive, found {beta}; 0.1 is usual.")
        self.beta = beta

    def counts(self, batch: PreferenceBatch) -> Optional[Tensor]:
        """Pairs, and tokens of prompts and chosen answers."""
        return pair_and_token_counts(batch, whole_labels(batch))

    def forward(self, scores: LabelScores, batch: PreferenceBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        whole_BT = whole_labels(batch)
        logp_BT = scores.logp(whole_BT)  # one pass of the head serves both terms
        nll_P, nll = chosen_nll(logp_BT, whole_BT, batch, scores)
        logp_B = torch.where(batch.labels_BT != IGNORE_INDEX, logp_BT, 0.0).sum(dim=1)
        mean_B = per_token(logp_B, tokens_of(batch.labels_BT))
        chosen_P, rejected_P = (mean_B - log1mexp(mean_B)).chunk(2)
        valid_P = valid_pairs(batch)
        metrics = reward_metrics(self.beta * mean_B, valid_P) | logp_metrics(logp_B, valid_P)
        metrics |= {"nll/chosen": nll, "log_odds_ratio": sum_and_count(chosen_P - rejected_P, valid_P)}
        return finish(nll_P - self.beta * F.logsigmoid(chosen_P - rejected_P), batch, metrics)

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"beta={self.beta}"


def whole_labels(batch: PreferenceBatch) -> Tensor:
    """Labels of prompt and answer (B, T): the next token wherever there is one."""
    inside_BT = (batch.doc_BT[:, 1:] == 0) & (batch.index_B >= 0)[:, None]
    return F.pad(torch.where(inside_BT, batch.tokens_BT[:, 1:], IGNORE_INDEX), (0, 1), value=IGNORE_INDEX)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0, each branch where it is accurate (Mächler 2012, eq. 7); x is kept below −1e-7, whose odds are 1e7."""
    x = x.clamp(max=-1e-7)
    small = x > -0.693147
    # The branch not taken must be finite too, or its gradient is NaN times zero.
    near = torch.log(-torch.expm1(torch.where(small, x, -0.5)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, near, far)
