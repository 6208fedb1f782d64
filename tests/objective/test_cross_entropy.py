"""CrossEntropy and LabelScores: sums and counts, never means."""

import pytest
import torch
import torch.nn.functional as F

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.errors import UserError
from lit_pretrain.objective import CrossEntropy, LabelScores, Objective


def make(
    rows: int = 3, length: int = 7, width: int = 5, vocabulary: int = 11
) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, length, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows, length))
    labels[0, 2:] = IGNORE_INDEX
    labels[2] = IGNORE_INDEX
    zeros = torch.zeros(rows, length, dtype=torch.int32)
    return (
        hidden,
        weight,
        Batch(labels.clamp(min=0), labels, zeros, torch.zeros(rows).long(), torch.arange(rows)),
    )


def test_sum_count_and_metrics() -> None:
    hidden, weight, batch = make()
    objective = CrossEntropy()
    assert isinstance(objective, Objective)
    assert objective.needs == {"labels"}
    numerator, denominator, metrics = objective(LabelScores(hidden, weight, batch.labels_BT), batch)
    logits = hidden @ weight.T
    expected = F.cross_entropy(
        logits.flatten(0, 1), batch.labels_BT.flatten(), reduction="none"
    ).view(3, 7)
    torch.testing.assert_close(numerator, expected.sum())
    assert denominator.item() == 2 + 7
    assert denominator.dtype == torch.int64
    assert metrics["tokens_B"].tolist() == [2, 7, 0]
    torch.testing.assert_close(metrics["nll_BT"], expected.detach())
    torch.testing.assert_close(metrics["loss_B"], expected.detach().sum(1))
    assert not any(metric.requires_grad for metric in metrics.values())


def test_extra_terms_are_in_the_loss_and_not_in_the_metrics() -> None:
    hidden, weight, batch = make()
    scores = LabelScores(hidden, weight, batch.labels_BT, logit_softcap=4.0)
    plain, _, plain_metrics = CrossEntropy()(scores, batch)
    extended, _, metrics = CrossEntropy(z_loss=0.5, label_smoothing=0.2)(scores, batch)
    torch.testing.assert_close(metrics["nll_BT"], plain_metrics["nll_BT"])
    logits = 4.0 * torch.tanh(hidden @ weight.T / 4.0)
    valid = batch.labels_BT != IGNORE_INDEX
    smooth = F.cross_entropy(
        logits[valid], batch.labels_BT[valid], reduction="sum", label_smoothing=0.2
    )
    torch.testing.assert_close(extended, smooth + 0.5 * logits[valid].logsumexp(1).square().sum())
    assert not torch.isclose(plain, extended)


def test_splitting_a_batch_changes_nothing() -> None:
    """Sums and counts of the parts add up to those of the whole: what a mean of means does not."""
    hidden, weight, batch = make()
    whole = CrossEntropy()(LabelScores(hidden, weight, batch.labels_BT), batch)
    parts = []
    for row in range(3):
        part = Batch(*(field[row : row + 1] for field in batch))
        parts.append(
            CrossEntropy()(LabelScores(hidden[row : row + 1], weight, part.labels_BT), part)
        )
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0])
    assert sum(part[1] for part in parts) == whole[1]


def test_logp_is_the_negative_of_the_nll() -> None:
    hidden, weight, batch = make()
    scores = LabelScores(hidden, weight, batch.labels_BT, logit_softcap=4.0)
    logp = scores.logp()
    torch.testing.assert_close(-logp, scores.cross_entropy()[1])
    assert logp.requires_grad
    assert logp.shape == batch.labels_BT.shape


@pytest.mark.parametrize(
    "settings", [{"z_loss": -1e-4}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}]
)
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        CrossEntropy(**settings)
