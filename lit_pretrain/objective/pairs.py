"""Pairs: what the objectives over [chosen; rejected] rows share. P pairs, B = 2P rows."""

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, PreferenceBatch

from .label_scores import LabelScores
from .sums import sum_and_count, tokens_of

REWARD_NAMES = ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
LOGP_NAMES = ("logp/chosen", "logp/rejected")


def valid_pairs(batch: PreferenceBatch) -> Tensor:
    """Which pairs count (P,), bool: not those that only fill up a batch."""
    return batch.index_B[: len(batch.index_B) // 2] >= 0


def pair_and_token_counts(batch: PreferenceBatch, labels_BT: Tensor) -> Tensor:
    """Pairs that count, and their supervised chosen tokens: shape (2,), fp32. fp32 counts exactly up to 16 million."""
    valid_P = valid_pairs(batch)
    tokens_P = tokens_of(labels_BT)[: len(valid_P)]
    return torch.stack([valid_P.sum(dtype=torch.float32), (tokens_P * valid_P).sum(dtype=torch.float32)])


def chosen_nll(logp_BT: Tensor, labels_BT: Tensor, batch: PreferenceBatch, scores: LabelScores) -> tuple[Tensor, Tensor]:
    """The chosen answers' negative log-likelihood as a token mean over the whole optimizer step, spread over its pairs.

    The sum over all pairs of the step, divided by their number, is the mean over all chosen tokens of the step.

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
    counts = pair_and_token_counts(batch, labels_BT) if scores.step_counts is None else scores.step_counts
    metric = sum_and_count(-logp_BT[:pairs], (labels_BT[:pairs] != IGNORE_INDEX) & valid_pairs(batch)[:, None])
    return nll_P * (counts[0] / counts[1].clamp(min=1)), metric


def reward_metrics(reward_B: Tensor, valid_P: Tensor) -> dict[str, Tensor]:
    """Means over pairs of the (implicit) rewards, their margin, and how often the chosen answer has the greater one."""
    chosen_P, rejected_P = reward_B.detach().chunk(2)
    return {
        "rewards/chosen": sum_and_count(chosen_P, valid_P),
        "rewards/rejected": sum_and_count(rejected_P, valid_P),
        "rewards/margin": sum_and_count(chosen_P - rejected_P, valid_P),
        "rewards/accuracy": sum_and_count((chosen_P > rejected_P).float(), valid_P),
    }


def logp_metrics(logp_B: Tensor, valid_P: Tensor) -> dict[str, Tensor]:
    """Means over pairs of the log-probabilities: both fall when a preference objective unlearns what it should keep."""
    chosen_P, rejected_P = logp_B.chunk(2)
    return {"logp/chosen": sum_and_count(chosen_P, valid_P), "logp/rejected": sum_and_count(rejected_P, valid_P)}


def finish(loss_P: Tensor, batch: PreferenceBatch, metrics: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Numerator, denominator and metrics of an objective whose terms are pairs; a pair is reported at its chosen row."""
    valid_P = valid_pairs(batch)
    loss_P = torch.where(valid_P, loss_P, 0.0)
    rows = {
        "loss_B": torch.cat([loss_P.detach(), torch.zeros_like(loss_P)]),
        "terms_B": torch.cat([valid_P, torch.zeros_like(valid_P)]).long(),
        "tokens_B": tokens_of(batch.labels_BT),
    }
    return loss_P.sum(), valid_P.sum(), {**rows, **metrics}
