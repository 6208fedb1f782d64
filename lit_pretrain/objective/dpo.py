"""DPO: preferences learned from log-ratios to a reference, with its hinge, IPO, robust and length-normalised variants."""

import math
from typing import Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import PreferenceBatch
from lit_pretrain.errors import UserError

from .label_scores import LabelScores
from .objective import Objective
from .pairs import LOGP_NAMES, REWARD_NAMES, chosen_nll, finish, logp_metrics, pair_and_token_counts, reward_metrics, valid_pairs
from .sums import per_token, tokens_of

Variant = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"]


class DPO(Objective):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) over log-ratios summed over the completion.

    Variants, with h = beta × (log-ratio of the chosen answer − log-ratio of the rejected one):

    - `sigmoid`: −log σ(h). With `label_smoothing` ε it is conservative DPO (Mitchell 2023): −(1−ε) log σ(h) − ε log σ(−h). TRL
      1.16 smooths `robust` only.
    - `hinge`: max(0, 1 − h) (SLiC, Zhao et al. 2023, in the log-ratio form of Liu et al. 2024).
    - `ipo`: (d − 1/(2 beta))² (Azar et al. 2024, eq. 17), where d is the difference of log-ratios *per token* of each answer, as its
      authors computed it; beta is their τ.
    - `robust`: [−(1−ε) log σ(h) + ε log σ(−h)] / (1−2ε) (Chowdhury et al. 2024), unbiased where a share ε of labels is flipped.
    - `sigmoid_norm`: −log σ of beta times the difference of log-ratios per token (the length-normalised DPO of Tülu 3, Lambert et al.
      2024; the name is TRL's). Betas there are larger: Tülu 3 uses 5.

    Args:
        beta: How strongly the policy is held to the reference.
        variant: Shape of the loss.
        label_smoothing: Probability that a label is flipped, in [0, 0.5); for `sigmoid`, `sigmoid_norm` and `robust`.
        sft_weight: Weight of the chosen answers' mean cross-entropy per token, added to the loss (Pang et al. 2024); keeps the chosen
            answers likely. TRL: `loss_type=["sigmoid", "sft"]`.
    """

    needs = frozenset({"pairs", "ref_logp"})

    def __init__(self, beta: float = 0.1, variant: Variant = "sigmoid", label_smoothing: float = 0.0, sft_weight: float = 0.0) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"DPO: beta must be positive, found {beta}; 0.1 is usual.")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(
                f"DPO: label_smoothing is the probability that a label is flipped and must lie in [0, 0.5), found {label_smoothing}."
            )
        if label_smoothing and variant in ("hinge", "ipo"):
            raise UserError(f"DPO: variant {variant!r} knows no label_smoothing (found {label_smoothing}); use sigmoid or robust.")
        if variant == "robust" and not label_smoothing:
            raise UserError(
                "DPO: variant 'robust' without label_smoothing is 'sigmoid'; set label_smoothing to the share of flipped labels."
            )
        if not sft_weight >= 0.0:
            raise UserError(f"DPO: sft_weight must be zero or positive, found {sft_weight}.")
        self.beta = beta
        self.variant = variant
        self.label_smoothing = label_smoothing
        self.sft_weight = sft_weight
        self.metric_names = (*REWARD_NAMES, *LOGP_NAMES, *(("nll/chosen",) if sft_weight else ()))

    def counts(self, batch: PreferenceBatch) -> Optional[Tensor]:
        """Pairs and chosen tokens, for the SFT term."""
        return pair_and_token_counts(batch, batch.labels_BT) if self.sft_weight else None

    def pair_loss(self, chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
        """Loss of each pair from its log-ratios, which the length-normalised variants take per token."""
        difference_P = chosen_P - rejected_P
        if self.variant == "hinge":
            return torch.relu(1.0 - self.beta * difference_P)
        if self.variant == "ipo":
            return (difference_P - 1.0 / (2.0 * self.beta)).square()
        right_P, wrong_P, smoothing = (
            -F.logsigmoid(self.beta * difference_P),
            -F.logsigmoid(-self.beta * difference_P),
            self.label_smoothing,
        )
        if self.variant == "robust":
            return ((1.0 - smoothing) * right_P - smoothing * wrong_P) / (1.0 - 2.0 * smoothing)
        return (1.0 - smoothing) * right_P + smoothing * wrong_P if smoothing else right_P

    def forward(self, scores: LabelScores, batch: PreferenceBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        assert batch.ref_logp_B is not None, "the stage fills in ref_logp_B where the data holds none"
        logp_BT = scores.logp()
        logp_B = logp_BT.sum(dim=1)
        ratio_B = logp_B - batch.ref_logp_B
        normalised = self.variant in ("ipo", "sigmoid_norm")
        loss_P = self.pair_loss(*(per_token(ratio_B, tokens_of(batch.labels_BT)) if normalised else ratio_B).chunk(2))
        valid_P = valid_pairs(batch)
        metrics = reward_metrics(self.beta * ratio_B, valid_P) | logp_metrics(logp_B, valid_P)
        if self.sft_weight:
            nll_P, metrics["nll/chosen"] = chosen_nll(logp_BT, batch.labels_BT, batch, scores)
            loss_P = loss_P + self.sft_weight * nll_P
        return finish(loss_P, batch, metrics)

    def start(self, means: dict[str, float], *, tolerance: float) -> Optional[str]:
        """A policy that is its reference has rewards of zero and the loss of a margin of zero: ln 2 for `sigmoid`."""
        expected = self.pair_loss(torch.zeros(1), torch.zeros(1)).item() + self.sft_weight * means.get("nll/chosen", 0.0)
        worst = max(abs(means["rewards/chosen"]), abs(means["rewards/rejected"]))
        if worst <= self.beta * tolerance and math.isclose(means["loss"], expected, abs_tol=self.slope() * self.beta * tolerance):
            return None
        return (
            f"the loss is {means['loss']:.4f} instead of {expected:.4f} and the rewards are {means['rewards/chosen']:.4g} and "
            f"{means['rewards/rejected']:.4g} instead of 0"
        )

    def slope(self) -> float:
        """How fast the loss moves with h around 0, at most; for the tolerance of `start`."""
        return 1.0 / self.beta**2 + 2.0 if self.variant == "ipo" else 2.0 / (1.0 - 2.0 * self.label_smoothing)

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"beta={self.beta}, variant={self.variant!r}, label_smoothing={self.label_smoothing}, sft_weight={self.sft_weight}"
