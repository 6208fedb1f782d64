"""Objectives that learn from pairs of answers: CPO, DPO, ORPO, SimPO and reward models.

Rows stand as [chosen; rejected]. Axes: P pairs, B = 2P rows, T tokens.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, PreferenceBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.objective import (
    LabelScores,
    Objective,
    per_token,
    sum_and_count,
    tokens_of,
)

REWARD_NAMES = ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
LOGP_NAMES = ("logp/chosen", "logp/rejected")


def valid_pairs(batch: PreferenceBatch) -> Tensor:
    """Mark the pairs that count (P,), bool: not those that only fill up a batch."""
    return batch.index_B[: len(batch.index_B) // 2] >= 0


def pair_and_token_counts(batch: PreferenceBatch, labels_BT: Tensor) -> Tensor:
    """Count the pairs and their supervised chosen tokens: shape (2,), fp32.

    fp32 counts exactly up to 16 million.
    """
    valid_P = valid_pairs(batch)
    tokens_P = tokens_of(labels_BT)[: len(valid_P)]
    return torch.stack(
        [valid_P.sum(dtype=torch.float32), (tokens_P * valid_P).sum(dtype=torch.float32)]
    )


def chosen_nll(
    logp_BT: Tensor, labels_BT: Tensor, batch: PreferenceBatch, scores: LabelScores
) -> tuple[Tensor, Tensor]:
    """Spread the chosen answers' token mean of the whole optimizer step over its pairs.

    The mean is that of the negative log-likelihood.

    The sum over all pairs of the step, divided by their number, is the mean over all chosen tokens
    of the step.

    Args:
        logp_BT: Log-probability of each label, 0 where ignored.
        labels_BT: Those labels.
        batch: The pairs.
        scores: Knows the counts of the step; where it does not, the batch stands for itself.

    Returns:
        The term of each pair (P,), and its plain mean for the metrics (sum and count).
    """
    pairs = len(batch.index_B) // 2
    nll_P = -logp_BT[:pairs].sum(dim=1)
    counts = (
        pair_and_token_counts(batch, labels_BT)
        if scores.step_counts is None
        else scores.step_counts
    )
    metric = sum_and_count(
        -logp_BT[:pairs], (labels_BT[:pairs] != IGNORE_INDEX) & valid_pairs(batch)[:, None]
    )
    # The sum will be divided by the pairs of the step; this makes it a mean over the step's tokens.
    return nll_P * (counts[0] / counts[1].clamp(min=1)), metric


def reward_metrics(reward_B: Tensor, valid_P: Tensor) -> dict[str, Tensor]:
    """Sum the (implicit) rewards of pairs, their margins, and how often the chosen wins."""
    chosen_P, rejected_P = reward_B.detach().chunk(2)
    return {
        "rewards/chosen": sum_and_count(chosen_P, valid_P),
        "rewards/rejected": sum_and_count(rejected_P, valid_P),
        "rewards/margin": sum_and_count(chosen_P - rejected_P, valid_P),
        "rewards/accuracy": sum_and_count((chosen_P > rejected_P).float(), valid_P),
    }


def logp_metrics(logp_B: Tensor, valid_P: Tensor) -> dict[str, Tensor]:
    """Sum the log-probabilities over pairs.

    Both fall when a preference objective unlearns what it should keep.
    """
    chosen_P, rejected_P = logp_B.chunk(2)
    return {
        "logp/chosen": sum_and_count(chosen_P, valid_P),
        "logp/rejected": sum_and_count(rejected_P, valid_P),
    }


def smoothed_loss(h_P: Tensor, smoothing: float) -> Tensor:
    """Compute −log σ(h) of each pair, or where labels are smoothed −(1−ε) log σ(h) − ε log σ(−h).

    Args:
        h_P: By how much the chosen answer is preferred, in units of the loss.
        smoothing: Probability that a label is flipped, ε.
    """
    if not smoothing:
        return -F.logsigmoid(h_P)
    return -(1.0 - smoothing) * F.logsigmoid(h_P) - smoothing * F.logsigmoid(-h_P)


def finish(
    loss_P: Tensor, batch: PreferenceBatch, metrics: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return numerator, denominator and metrics of an objective whose terms are pairs.

    A pair is reported at its chosen row.
    """
    valid_P = valid_pairs(batch)
    # Rows that only fill up a micro-batch count nothing, whatever was computed for them.
    loss_P = torch.where(valid_P, loss_P, 0.0)
    rows = {
        "loss_B": torch.cat([loss_P.detach(), torch.zeros_like(loss_P)]),
        "terms_B": torch.cat([valid_P, torch.zeros_like(valid_P)]).long(),
        "tokens_B": tokens_of(batch.labels_BT),
    }
    return loss_P.sum(), valid_P.sum(), {**rows, **metrics}


class CPO(Objective):
    """Contrastive preference optimisation (Xu et al. 2024, eq. 3).

    −log σ(beta × difference of log-probabilities) + NLL of the chosen.

    The NLL is a mean per token, as in TRL; the paper's expectation is per sequence.

    Args:
        beta: Scale of the log-probabilities.
        variant: `sigmoid` is the paper's; `hinge` is max(0, 1 − h) (SLiC-HF, Zhao et al. 2023).
        nll_weight: Weight of the chosen answers' cross-entropy (TRL: cpo_alpha).
        label_smoothing: Probability that a label is flipped, in [0, 0.5); for `sigmoid`.
    """

    needs = frozenset({"pairs"})
    splits_vocabulary = True

    def __init__(
        self,
        beta: float = 0.1,
        variant: Literal["sigmoid", "hinge"] = "sigmoid",
        nll_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"CPO: beta must be positive, found {beta}; 0.1 is usual.")
        if not nll_weight >= 0.0:
            raise UserError(f"CPO: nll_weight must be zero or positive, found {nll_weight}.")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(f"CPO: label_smoothing must lie in [0, 0.5), found {label_smoothing}.")
        if label_smoothing and variant == "hinge":
            raise UserError(
                f"CPO: variant 'hinge' knows no label_smoothing (found {label_smoothing}); use"
                " sigmoid."
            )
        self.beta = beta
        self.variant = variant
        self.nll_weight = nll_weight
        self.label_smoothing = label_smoothing
        self.metric_names = (*REWARD_NAMES, *LOGP_NAMES, "nll/chosen")

    def counts(self, batch: PreferenceBatch) -> Tensor | None:
        """Count pairs and chosen tokens, for the likelihood term."""
        return pair_and_token_counts(batch, batch.labels_BT)

    def forward(
        self, scores: LabelScores, batch: PreferenceBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        logp_BT = scores.logp()
        logp_B = logp_BT.sum(dim=1)
        reward_B = self.beta * logp_B
        h_P = reward_B.chunk(2)[0] - reward_B.chunk(2)[1]
        if self.variant == "hinge":
            loss_P = torch.relu(1.0 - h_P)
        else:
            loss_P = smoothed_loss(h_P, self.label_smoothing)
        nll_P, nll = chosen_nll(logp_BT, batch.labels_BT, batch, scores)
        valid_P = valid_pairs(batch)
        metrics = (
            reward_metrics(reward_B, valid_P) | logp_metrics(logp_B, valid_P) | {"nll/chosen": nll}
        )
        return finish(loss_P + self.nll_weight * nll_P, batch, metrics)

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return (
            f"beta={self.beta}, variant={self.variant!r}, nll_weight={self.nll_weight},"
            f" label_smoothing={self.label_smoothing}"
        )


Variant = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"]


class DPO(Objective):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

    Log-ratios are summed over the completion.

    Variants, with h = beta × (log-ratio of the chosen answer − log-ratio of the rejected one):

    - `sigmoid`: −log σ(h). With `label_smoothing` ε it is conservative DPO (Mitchell 2023): −(1−ε)
      log σ(h) − ε log σ(−h). TRL 1.16 smooths `robust` only.
    - `hinge`: max(0, 1 − h) (SLiC, Zhao et al. 2023, in the log-ratio form of Liu et al. 2024).
    - `ipo`: (d − 1/(2 beta))² (Azar et al. 2024, eq. 17), where d is the difference of log-ratios
      *per token* of each answer, as its authors computed it; beta is their τ.
    - `robust`: [−(1−ε) log σ(h) + ε log σ(−h)] / (1−2ε) (Chowdhury et al. 2024), unbiased where a
      share ε of labels is flipped.
    - `sigmoid_norm`: −log σ of beta times the difference of log-ratios per token (the
      length-normalised DPO of Tülu 3, Lambert et al. 2024; the name is TRL's). Betas there are
      larger: Tülu 3 uses 5.

    Args:
        beta: How strongly the policy is held to the reference.
        variant: Shape of the loss.
        label_smoothing: Probability that a label is flipped, in [0, 0.5); for `sigmoid`,
            `sigmoid_norm` and `robust`.
        sft_weight: Weight of the chosen answers' mean cross-entropy per token, added to the loss
            (Pang et al. 2024); keeps the chosen answers likely. TRL: `loss_type=["sigmoid",
            "sft"]`.
    """

    needs = frozenset({"pairs", "ref_logp"})
    splits_vocabulary = True

    def __init__(
        self,
        beta: float = 0.1,
        variant: Variant = "sigmoid",
        label_smoothing: float = 0.0,
        sft_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"DPO: beta must be positive, found {beta}; 0.1 is usual.")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(
                "DPO: label_smoothing is the probability that a label is flipped and must lie in"
                f" [0, 0.5), found {label_smoothing}."
            )
        if label_smoothing and variant in ("hinge", "ipo"):
            raise UserError(
                f"DPO: variant {variant!r} knows no label_smoothing (found {label_smoothing}); use"
                " sigmoid or robust."
            )
        if variant == "robust" and not label_smoothing:
            raise UserError(
                "DPO: variant 'robust' without label_smoothing is 'sigmoid'; set label_smoothing to"
                " the share of flipped labels."
            )
        if not sft_weight >= 0.0:
            raise UserError(f"DPO: sft_weight must be zero or positive, found {sft_weight}.")
        self.beta = beta
        self.variant = variant
        self.label_smoothing = label_smoothing
        self.sft_weight = sft_weight
        self.metric_names = (*REWARD_NAMES, *LOGP_NAMES, *(("nll/chosen",) if sft_weight else ()))

    def counts(self, batch: PreferenceBatch) -> Tensor | None:
        """Count pairs and chosen tokens, for the SFT term."""
        return pair_and_token_counts(batch, batch.labels_BT) if self.sft_weight else None

    def pair_loss(self, chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
        """Compute the loss of each pair from its log-ratios; some variants take them per token."""
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

    def forward(
        self, scores: LabelScores, batch: PreferenceBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        assert batch.ref_logp_B is not None, (
            "the stage fills in ref_logp_B where the data holds none"
        )
        logp_BT = scores.logp()
        logp_B = logp_BT.sum(dim=1)
        ratio_B = logp_B - batch.ref_logp_B
        normalised = self.variant in ("ipo", "sigmoid_norm")
        loss_P = self.pair_loss(
            *(per_token(ratio_B, tokens_of(batch.labels_BT)) if normalised else ratio_B).chunk(2)
        )
        valid_P = valid_pairs(batch)
        metrics = reward_metrics(self.beta * ratio_B, valid_P) | logp_metrics(logp_B, valid_P)
        if self.sft_weight:
            nll_P, metrics["nll/chosen"] = chosen_nll(logp_BT, batch.labels_BT, batch, scores)
            loss_P = loss_P + self.sft_weight * nll_P
        return finish(loss_P, batch, metrics)

    def start(self, means: dict[str, float], *, tolerance: float) -> str | None:
        """Check that the policy is its reference: no reward, and the loss of a margin of zero.

        That is ln 2 for `sigmoid`.
        """
        expected = self.pair_loss(
            torch.zeros(1), torch.zeros(1)
        ).item() + self.sft_weight * means.get("nll/chosen", 0.0)
        worst = max(abs(means["rewards/chosen"]), abs(means["rewards/rejected"]))
        if worst <= self.beta * tolerance and math.isclose(
            means["loss"], expected, abs_tol=self.slope() * self.beta * tolerance
        ):
            return None
        return (
            f"the loss is {means['loss']:.4f} instead of {expected:.4f} and the rewards are"
            f" {means['rewards/chosen']:.4g} and {means['rewards/rejected']:.4g} instead of 0"
        )

    def slope(self) -> float:
        """Bound how fast the loss moves with h around 0; for the tolerance of `start`."""
        return (
            1.0 / self.beta**2 + 2.0
            if self.variant == "ipo"
            else 2.0 / (1.0 - 2.0 * self.label_smoothing)
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return (
            f"beta={self.beta}, variant={self.variant!r}, label_smoothing={self.label_smoothing},"
            f" sft_weight={self.sft_weight}"
        )


class ORPO(Objective):
    """Odds ratio preference optimisation (Hong et al. 2024, eqs. 6 and 7).

    NLL of prompt and chosen answer − beta × log σ(log odds ratio).

    The NLL is over prompt *and* chosen answer, as in the authors' code and TRL; the odds are those
    of the answers alone, from their log-probabilities per token.

    Args:
        beta: Weight of the odds ratio (the paper's λ).
    """

    needs = frozenset({"pairs"})
    splits_vocabulary = True
    metric_names = (*REWARD_NAMES, *LOGP_NAMES, "nll/chosen", "log_odds_ratio")

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"ORPO: beta must be positive, found {beta}; 0.1 is usual.")
        self.beta = beta

    def counts(self, batch: PreferenceBatch) -> Tensor | None:
        """Count pairs, and tokens of prompts and chosen answers."""
        return pair_and_token_counts(batch, whole_labels(batch))

    def forward(
        self, scores: LabelScores, batch: PreferenceBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        whole_BT = whole_labels(batch)
        logp_BT = scores.logp(whole_BT)  # one pass of the head serves both terms
        nll_P, nll = chosen_nll(logp_BT, whole_BT, batch, scores)
        logp_B = torch.where(batch.labels_BT != IGNORE_INDEX, logp_BT, 0.0).sum(dim=1)
        mean_B = per_token(logp_B, tokens_of(batch.labels_BT))
        chosen_P, rejected_P = (mean_B - log1mexp(mean_B)).chunk(2)
        valid_P = valid_pairs(batch)
        metrics = reward_metrics(self.beta * mean_B, valid_P) | logp_metrics(logp_B, valid_P)
        metrics |= {
            "nll/chosen": nll,
            "log_odds_ratio": sum_and_count(chosen_P - rejected_P, valid_P),
        }
        return finish(nll_P - self.beta * F.logsigmoid(chosen_P - rejected_P), batch, metrics)

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return f"beta={self.beta}"


def whole_labels(batch: PreferenceBatch) -> Tensor:
    """Make labels of prompt and answer (B, T): the next token wherever there is one."""
    inside_BT = (batch.doc_BT[:, 1:] == 0) & (batch.index_B >= 0)[:, None]
    return F.pad(
        torch.where(inside_BT, batch.tokens_BT[:, 1:], IGNORE_INDEX), (0, 1), value=IGNORE_INDEX
    )


def log1mexp(x: Tensor) -> Tensor:
    """Compute log(1 − exp(x)) for x < 0, each branch where it is accurate (Mächler 2012, eq. 7).

    x is kept below −1e-7, whose odds are 1e7.
    """
    x = x.clamp(max=-1e-7)
    small = x > -0.693147
    # The branch not taken must be finite too, or its gradient is NaN times zero.
    near = torch.log(-torch.expm1(torch.where(small, x, -0.5)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, near, far)


class SimPO(Objective):
    """Simple preference optimisation (Meng et al. 2024, eq. 6).

    −log σ(beta × difference of log-probabilities per token − gamma).

    It has no likelihood term: TRL's is `CPOTrainer(loss_type="simpo", cpo_alpha=0)`, whose
    `cpo_alpha` is 1 unless it is set.

    Args:
        beta: Scale of the rewards; the paper uses 2 to 10.
        gamma: Target margin in units of the reward (the paper's γ; TRL calls it simpo_gamma). The
            paper tunes gamma / beta between 0 and 1.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
    """

    needs = frozenset({"pairs"})
    splits_vocabulary = True
    metric_names = (*REWARD_NAMES, *LOGP_NAMES)

    def __init__(self, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not beta > 0.0:
            raise UserError(f"SimPO: beta must be positive, found {beta}; the paper uses 2 to 10.")
        if not gamma >= 0.0:
            raise UserError(f"SimPO: gamma must be zero or positive, found {gamma}.")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(
                f"SimPO: label_smoothing must lie in [0, 0.5), found {label_smoothing}."
            )
        self.beta = beta
        self.gamma = gamma
        self.label_smoothing = label_smoothing

    def forward(
        self, scores: LabelScores, batch: PreferenceBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the pairs; the count is that of the pairs."""
        logp_B = scores.logp().sum(dim=1)
        reward_B = self.beta * per_token(logp_B, tokens_of(batch.labels_BT))
        chosen_P, rejected_P = reward_B.chunk(2)
        h_P = chosen_P - rejected_P - self.gamma
        loss_P = smoothed_loss(h_P, self.label_smoothing)
        valid_P = valid_pairs(batch)
        return finish(
            loss_P, batch, reward_metrics(reward_B, valid_P) | logp_metrics(logp_B, valid_P)
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return f"beta={self.beta}, gamma={self.gamma}, label_smoothing={self.label_smoothing}"


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
