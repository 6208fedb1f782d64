"""KTO: single answers, each judged desirable or not, against a reference point of the batch.

Axes: B rows (answers), T tokens.
"""

import math

import torch
from torch import Tensor

from lit_pretrain.batch import LabelledBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.objective import LabelScores, Objective, sum_and_count, tokens_of


class KTO(Objective):
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024, eq. 7).

    The reference point z0 is the mean log-ratio of the mismatched rows of the micro-batch, clamped
    at zero and without a gradient. So the number of answers in a micro-batch changes the loss, as
    the paper says of its own estimate. It must be above 1, or every mismatched answer is the answer
    itself. TRL averages z0 over ranks too.

    Args:
        beta: How strongly the policy is held to the reference.
        desirable_weight: Weight of desirable answers. The paper wants desirable_weight × their
            number between 1 and 4/3 of undesirable_weight × the number of the others.
        undesirable_weight: Weight of undesirable answers.
    """

    needs = frozenset({"verdicts", "ref_logp"})
    metric_names = ("rewards/chosen", "rewards/rejected", "logp/chosen", "logp/rejected", "kl")
    measured_half = True
    splits_vocabulary = True

    def __init__(
        self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"KTO: beta must be positive, found {beta}; 0.1 is usual.")
        for name, weight in (
            ("desirable_weight", desirable_weight),
            ("undesirable_weight", undesirable_weight),
        ):
            if not weight >= 0.0:
                raise UserError(f"KTO: {name} must be zero or positive, found {weight}.")
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight

    def forward(
        self, scores: LabelScores, batch: LabelledBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the answers; the count is that of the answers.

        Raises:
            UserError: The micro-batch holds one answer only.
        """
        assert batch.ref_logp_B is not None, (
            "the stage fills in ref_logp_B where the data holds none"
        )
        answers = len(batch.index_B) // 2
        if answers < 2:
            raise UserError(
                f"KTO: a micro-batch of {answers} answer cannot estimate the divergence from"
                " mismatched answers; set data.micro_batch_size to at least 2, better 8 or more"
            )
        logp_B = scores.logp().sum(dim=1)
        ratio_N, mismatched_N = (logp_B - batch.ref_logp_B).chunk(2)
        valid_N, desirable_N = batch.index_B[:answers] >= 0, batch.desirable_B[:answers]
        # Without a gradient: it is the point from which gains are counted, and not what is
        # minimised.
        kl = torch.where(valid_N, mismatched_N.detach(), 0.0).sum() / valid_N.sum().clamp(min=1)
        gain_N = self.beta * (ratio_N - kl.clamp(min=0.0))
        loss_N = torch.where(
            desirable_N,
            self.desirable_weight * torch.sigmoid(-gain_N),
            self.undesirable_weight * torch.sigmoid(gain_N),
        )  # 1 − σ(x) = σ(−x), without the cancellation
        loss_N = torch.where(valid_N, loss_N, 0.0)
        good_N, bad_N = valid_N & desirable_N, valid_N & ~desirable_N
        rest_N = torch.zeros_like(loss_N)
        return (
            loss_N.sum(),
            valid_N.sum(),
            {
                "loss_B": torch.cat([loss_N.detach(), rest_N]),
                "terms_B": torch.cat([valid_N, torch.zeros_like(valid_N)]).long(),
                "tokens_B": torch.cat(
                    [tokens_of(batch.labels_BT[:answers]), torch.zeros_like(valid_N).long()]
                ),
                "rewards/chosen": sum_and_count(self.beta * ratio_N, good_N),
                "rewards/rejected": sum_and_count(self.beta * ratio_N, bad_N),
                "logp/chosen": sum_and_count(logp_B[:answers], good_N),
                "logp/rejected": sum_and_count(logp_B[:answers], bad_N),
                "kl": sum_and_count(mismatched_N, valid_N),
            },
        )

    def start(self, means: dict[str, float], *, tolerance: float) -> str | None:
        """Check that rewards and divergence are zero: the policy is still its reference."""
        found = {
            name: means[name]
            for name in ("rewards/chosen", "rewards/rejected", "kl")
            if not math.isnan(means[name])
        }
        wrong = {
            name: value
            for name, value in found.items()
            if abs(value) > (tolerance if name == "kl" else self.beta * tolerance)
        }
        return (
            ", ".join(f"{name} is {value:.4g} instead of 0" for name, value in wrong.items())
            or None
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return (
            f"beta={self.beta}, desirable_weight={self.desirable_weight},"
            f" undesirable_weight={self.undesirable_weight}"
        )
