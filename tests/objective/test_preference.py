"""Preference objectives: where the well-known traps lie. TRL's own numbers are in
test_agrees_with_trl.py.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_pretrain.batch import IGNORE_INDEX, LabelledBatch, PreferenceBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective import CPO, DPO, KTO, ORPO, LabelScores, RewardModel, SimPO
from lit_pretrain.objective.preference import log1mexp, whole_labels

V, D, T = 13, 6, 9


def rows(lengths: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Padded rows of (prompt, completion) lengths."""
    torch.manual_seed(seed)
    tokens = torch.randint(0, V, (len(lengths), T))
    labels, doc = torch.full_like(tokens, IGNORE_INDEX), torch.ones_like(tokens, dtype=torch.int32)
    for i, (prompt, completion) in enumerate(lengths):
        labels[i, prompt - 1 : prompt + completion - 1] = tokens[i, prompt : prompt + completion]
        doc[i, : prompt + completion] = 0
    return tokens, labels, doc


LENGTHS = [(2, 7), (3, 2), (4, 1), (2, 3)]


def pairs(**fields: Any) -> PreferenceBatch:
    return PreferenceBatch(
        *rows(LENGTHS), torch.zeros(4).long(), torch.tensor([0, 1, 0, 1]), **fields
    )


def scores(batch: Any, seed: int = 1) -> LabelScores:
    torch.manual_seed(seed)
    hidden = torch.randn(len(batch.tokens_BT), T, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    return LabelScores(hidden, weight, batch.labels_BT)


def plain(found: LabelScores, labels: Tensor) -> Tensor:
    """Log-probability of each label, by a whole softmax."""
    logp = (
        (found.hidden_BTD @ found.head_weight_VD.T)
        .log_softmax(-1)
        .gather(2, labels.clamp(min=0)[..., None])
        .squeeze(-1)
    )
    return torch.where(labels != IGNORE_INDEX, logp, 0.0)


def mean(result: tuple[Tensor, Tensor, Any]) -> float:
    return (result[0] / result[1]).item()


REF = torch.tensor([-9.0, -4.0, -2.0, -8.0], dtype=torch.float64)
COUNT = torch.tensor([completion for _, completion in LENGTHS])


# ---------------------------------------------------------------------- DPO


def test_dpo_sums_and_ipo_and_sigmoid_norm_average() -> None:
    batch = pairs(ref_logp_B=REF)
    found = scores(batch)
    ratio = plain(found, batch.labels_BT).sum(1) - REF
    (a, b), (c, d) = ratio.chunk(2), (ratio / COUNT).chunk(2)
    assert mean(DPO(beta=0.4)(found, batch)) == pytest.approx(
        -F.logsigmoid(0.4 * (a - b)).mean().item()
    )
    assert mean(DPO(beta=0.4, variant="hinge")(found, batch)) == pytest.approx(
        torch.relu(1 - 0.4 * (a - b)).mean().item()
    )
    assert mean(DPO(beta=0.4, variant="ipo")(found, batch)) == pytest.approx(
        (c - d - 1 / 0.8).square().mean().item()
    )
    assert mean(DPO(beta=0.4, variant="sigmoid_norm")(found, batch)) == pytest.approx(
        -F.logsigmoid(0.4 * (c - d)).mean().item()
    )
    assert abs((a - b) - (c - d)).min() > 0.1  # the two would be noticed


def test_conservative_dpo_mixes_both_directions() -> None:
    batch = pairs(ref_logp_B=REF)
    found = scores(batch)
    a, b = (plain(found, batch.labels_BT).sum(1) - REF).chunk(2)
    h = 0.4 * (a - b)
    smooth = mean(DPO(beta=0.4, label_smoothing=0.2)(found, batch))
    assert smooth == pytest.approx((-0.8 * F.logsigmoid(h) - 0.2 * F.logsigmoid(-h)).mean().item())
    robust = mean(DPO(beta=0.4, variant="robust", label_smoothing=0.2)(found, batch))
    assert robust == pytest.approx(
        ((-0.8 * F.logsigmoid(h) + 0.2 * F.logsigmoid(-h)) / 0.6).mean().item()
    )


def test_robust_dpo_is_unbiased() -> None:
    """Averaged over labels that are flipped with the given probability it is the loss without
    flips.
    """
    flip, h = 0.3, torch.linspace(-3, 3, 7)
    robust, clean = DPO(beta=1.0, variant="robust", label_smoothing=flip), DPO(beta=1.0)
    zero = torch.zeros_like(h)
    average = (1 - flip) * robust.pair_loss(h, zero) + flip * robust.pair_loss(zero, h)
    torch.testing.assert_close(average, clean.pair_loss(h, zero))


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (DPO(), math.log(2)),
        (DPO(label_smoothing=0.2), math.log(2)),
        (DPO(variant="robust", label_smoothing=0.2), math.log(2)),
        (DPO(variant="sigmoid_norm", beta=5.0), math.log(2)),
        (DPO(variant="hinge"), 1.0),
        (DPO(variant="ipo", beta=0.1), 25.0),
    ],
)
def test_the_truths_of_step_0(objective: DPO, loss: float) -> None:
    batch = pairs()
    found = scores(batch)
    own = found.logp().sum(1).detach()
    result = objective(found, batch._replace(ref_logp_B=own))
    assert mean(result) == pytest.approx(loss)
    means = {"loss": mean(result)} | {
        name: (result[2][name][0] / result[2][name][1]).item() for name in objective.metric_names
    }
    assert means["rewards/margin"] == means["rewards/accuracy"] == 0.0
    assert objective.start(means, tolerance=1e-3) is None
    other = objective(found, batch._replace(ref_logp_B=own - torch.arange(4.0)))
    wrong = {"loss": mean(other)} | {
        name: (other[2][name][0] / other[2][name][1]).item() for name in objective.metric_names
    }
    assert "instead of" in str(objective.start(wrong, tolerance=1e-2))


def test_an_sft_term_is_a_mean_over_the_tokens_of_the_chosen() -> None:
    batch = pairs(ref_logp_B=REF)
    found = scores(batch)
    nll = -plain(found, batch.labels_BT)[:2].sum() / COUNT[:2].sum()
    extended, alone = (mean(DPO(sft_weight=weight)(found, batch)) for weight in (0.5, 0.0))
    assert extended - alone == pytest.approx(0.5 * nll.item())


# ---------------------------------------------------------------------- without a reference


def test_orpo_learns_the_prompt_too() -> None:
    batch = pairs()
    found = scores(batch)
    whole = whole_labels(batch)
    assert (whole != IGNORE_INDEX).sum(1).tolist() == [p + c - 1 for p, c in LENGTHS]
    assert torch.equal(
        whole[batch.labels_BT != IGNORE_INDEX], batch.labels_BT[batch.labels_BT != IGNORE_INDEX]
    )
    chosen = plain(found, whole)[:2]
    nll = -chosen.sum() / (whole[:2] != IGNORE_INDEX).sum()
    average = plain(found, batch.labels_BT).sum(1) / COUNT
    odds = average - torch.log(1 - average.exp())
    expected = nll - 0.1 * F.logsigmoid(odds[:2] - odds[2:]).mean()
    assert mean(ORPO(beta=0.1)(found, batch)) == pytest.approx(expected.item())
    completion = -plain(found, batch.labels_BT)[:2].sum() / COUNT[:2].sum()
    assert abs(completion - nll) > 0.01  # the other reading would be noticed


@given(st.floats(-40, -1e-6))
def test_log1mexp_is_accurate_at_both_ends(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log1mexp(value)
    assert found.item() == pytest.approx(
        math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x)), rel=1e-9
    )
    (gradient,) = torch.autograd.grad(found, value)
    assert gradient.item() == pytest.approx(math.exp(x) / math.expm1(x), rel=1e-6)


def test_a_certain_answer_has_finite_odds() -> None:
    value = torch.zeros(1, requires_grad=True)
    log1mexp(value).backward()
    assert torch.isfinite(log1mexp(value)).all()
    assert torch.isfinite(value.grad).all()


def test_simpo_is_per_token_and_has_no_likelihood_term() -> None:
    batch = pairs()
    found = scores(batch)
    average = plain(found, batch.labels_BT).sum(1) / COUNT
    expected = -F.logsigmoid(2.0 * (average[:2] - average[2:]) - 1.5).mean()
    assert mean(SimPO(beta=2.0, gamma=1.5)(found, batch)) == pytest.approx(expected.item())


# ---------------------------------------------------------------------- KTO


def verdicts(count: int = 4, seed: int = 0) -> LabelledBatch:
    lengths = [(2, 1 + i % 6) for i in range(2 * count)]
    index, desirable = torch.arange(count).repeat(2), (torch.arange(count) % 2 == 0).repeat(2)
    return LabelledBatch(*rows(lengths, seed), torch.zeros(2 * count).long(), index, desirable)


def kto(
    batch: LabelledBatch, ratio: list[float]
) -> tuple[float, Tensor, LabelScores, dict[str, Tensor]]:
    """Loss of given log-ratios, with the gradient of the hidden states."""
    found = scores(batch)
    logp = found.logp().sum(1).detach()
    result = KTO(beta=0.5)(
        found, batch._replace(ref_logp_B=logp - torch.tensor(ratio, dtype=torch.float64))
    )
    (gradient,) = torch.autograd.grad(result[0], found.hidden_BTD)
    return mean(result), gradient, found, result[2]


def test_kto_measures_from_the_mean_of_the_mismatched_rows() -> None:
    batch = verdicts()
    loss, gradient, _, metrics = kto(batch, [1.0, 2.0, -1.0, 0.5, 3.0, 1.0, 1.0, 1.0])
    z0, sigma = 1.5, lambda x: 1 / (1 + math.exp(-x))
    expected = [
        1 - sigma(0.5 * (1 - z0)),
        1 - sigma(0.5 * (z0 - 2)),
        1 - sigma(0.5 * (-1 - z0)),
        1 - sigma(0.5 * (z0 - 0.5)),
    ]
    assert loss == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert (metrics["kl"][0] / metrics["kl"][1]).item() == pytest.approx(z0)
    assert gradient[:4].abs().sum() > 0
    assert gradient[4:].abs().sum() == 0  # z0 is a constant to the gradient


def test_kto_clamps_the_divergence_at_zero() -> None:
    real = [1.0, 2.0, -1.0, 0.5]
    below, zero = (kto(verdicts(), [*real, *[value] * 4])[0] for value in (-3.0, 0.0))
    assert below == pytest.approx(zero)
    assert kto(verdicts(), [*real, *[2.0] * 4])[0] != pytest.approx(zero, rel=1e-3)


def test_kto_depends_on_its_batch_and_refuses_a_batch_of_one() -> None:
    batch, ratio = verdicts(), [1.0, 2.0, -1.0, 0.5, 4.0, 3.0, 1.0, 0.0]
    whole = kto(batch, ratio)[0]
    halves = []
    for part in ([0, 1, 4, 5], [2, 3, 6, 7]):
        fields = [None if field is None else field[part] for field in batch]
        halves.append(kto(LabelledBatch(*fields), [ratio[i] for i in part])[0])
    assert sum(halves) / 2 != pytest.approx(whole, rel=1e-3)
    one = LabelledBatch(*(None if field is None else field[[0, 4]] for field in batch))
    with pytest.raises(UserError, match=r"a micro-batch of 1 answer cannot estimate"):
        kto(one, [1.0, 2.0])


def test_kto_leaves_out_rows_that_only_fill_up() -> None:
    batch, ratio = verdicts(), [1.0, 2.0, -1.0, 9.0, 3.0, 1.0, 0.5, 9.0]
    padded = batch._replace(index_B=torch.tensor([0, 1, 2, -1] * 2))
    fields = [None if field is None else field[[0, 1, 2, 4, 5, 6]] for field in batch]
    expected = kto(LabelledBatch(*fields), [1.0, 2.0, -1.0, 3.0, 1.0, 0.5])[0]
    assert kto(padded, ratio)[0] == pytest.approx(expected)


# ---------------------------------------------------------------------- reward model


def test_a_reward_is_read_at_the_last_token_of_the_sequence() -> None:
    batch = pairs(margin_P=torch.tensor([0.5, 2.0]))
    found, head = scores(batch), nn.Linear(D, 1, bias=False).double()
    found.score_head = head
    last = torch.tensor([p + c - 1 for p, c in LENGTHS])
    score = head(found.hidden_BTD[torch.arange(4), last]).squeeze(-1)
    difference = score[:2] - score[2:] - torch.tensor([0.5, 2.0])
    expected = -F.logsigmoid(difference) + 0.01 * (score[:2] + score[2:]).square()
    result = RewardModel(centering=0.01)(found, batch)
    torch.testing.assert_close(result[0], expected.sum())
    assert result[2]["rewards/accuracy"][0].item() == (score[:2] > score[2:]).sum().item()
    (gradient,) = torch.autograd.grad(result[0], found.hidden_BTD)
    touched = gradient.abs().sum(2) > 0
    assert touched.nonzero().tolist() == [[i, n] for i, n in enumerate(last.tolist())]


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0.0), r"DPO: beta must be positive, found 0\.0"),
        (lambda: DPO(label_smoothing=0.5), r"must lie in \[0, 0\.5\), found 0\.5"),
        (lambda: DPO(variant="ipo", label_smoothing=0.1), r"'ipo' knows no label_smoothing"),
        (lambda: DPO(variant="robust"), r"'robust' without label_smoothing is 'sigmoid'"),
        (lambda: DPO(sft_weight=-1.0), r"sft_weight must be zero or positive"),
        (lambda: SimPO(gamma=-1.0), r"gamma must be zero or positive"),
        (lambda: CPO(variant="hinge", label_smoothing=0.1), r"'hinge' knows no label_smoothing"),
        (lambda: ORPO(beta=math.nan), r"beta must be positive, found nan"),
        (lambda: KTO(desirable_weight=-1.0), r"desirable_weight must be zero or positive"),
        (lambda: RewardModel(centering=-0.1), r"centering must be zero or positive"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
