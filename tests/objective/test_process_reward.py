"""Process reward models: token classification as TRL's PRMTrainer computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_pretrain.batch import IGNORE_INDEX, StepwiseBatch
from lit_pretrain.objective import LabelScores, ProcessRewardModel
from tests.objective.test_preference import D, T, rows, scores

LENGTHS = [(2, 7), (3, 4), (4, 1), (2, 3)]


def batch() -> StepwiseBatch:
    """Answers with one to three judged tokens; the last row only fills up."""
    tokens, labels, doc = rows(LENGTHS)
    right = torch.full((4, T), IGNORE_INDEX)
    right[0, [3, 5, 8]] = torch.tensor([1, 1, 0])
    right[1, [4, 6]] = torch.tensor([0, 1])
    right[2, 4] = 1
    return StepwiseBatch(
        tokens, labels, doc, torch.zeros(4).long(), torch.tensor([0, 1, 2, -1]), right
    )


def token_classification(
    found: LabelScores, right: torch.Tensor, weight_2D: torch.Tensor
) -> torch.Tensor:
    """`PRMTrainer.compute_loss`: the mean cross-entropy of two outputs over the labelled tokens."""
    return F.cross_entropy(
        (found.hidden_BTD @ weight_2D.T).flatten(0, 1), right.flatten(), ignore_index=-100
    )


def test_loss_and_gradients_are_those_of_token_classification() -> None:
    made, found = batch(), scores(batch())
    weight = torch.randn(2, D, dtype=torch.float64)
    head = nn.Linear(D, 1, bias=False).double()
    head.weight.data = weight[1:] - weight[:1]  # softmax sees only the difference
    found.score_head = head
    total, count, metrics = ProcessRewardModel()(found, made)
    expected = token_classification(found, made.right_BT, weight)
    assert count.item() == 6
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (
        torch.autograd.grad(value, found.hidden_BTD, retain_graph=True)[0]
        for value in (total / count, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    judged = made.right_BT != IGNORE_INDEX
    predicted = (found.hidden_BTD @ weight.T).argmax(-1)
    probability = (found.hidden_BTD @ weight.T).softmax(-1)[..., 1]
    means = {name: (pair[0] / pair[1]).item() for name, pair in metrics.items() if pair.ndim == 1
             and name.startswith("steps/")}  # fmt: skip
    assert means == pytest.approx(
        {
            "steps/accuracy": (predicted == made.right_BT)[judged].double().mean().item(),
            "steps/share_right": 4 / 6,
            "steps/score_right": probability[made.right_BT == 1].mean().item(),
            "steps/score_wrong": probability[made.right_BT == 0].mean().item(),
        }
    )
    assert metrics["tokens_B"].tolist() == [3, 2, 1, 0]
    assert metrics["loss_B"].sum().item() == pytest.approx(total.item())
    assert metrics["loss_B"][3] == 0
