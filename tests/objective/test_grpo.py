"""GRPO: what its variants normalise by, when it clips, and what its gradient is where its value
is zero.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, PolicyBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective import GRPO, LabelScores, group_advantages

V, D, T, B = 11, 5, 8, 6


def batch(**fields: Any) -> PolicyBatch:
    """Six answers of 1 to 6 tokens in two groups."""
    torch.manual_seed(0)
    tokens = torch.randint(0, V, (B, T))
    labels = torch.where(
        torch.arange(T)[None] < 1 + torch.arange(B)[:, None],
        torch.randint(0, V, (B, T)),
        IGNORE_INDEX,
    )
    reward = torch.tensor([1.0, 0, 0, 1, 1, 0])
    group = torch.arange(B) // 3
    made = PolicyBatch(
        tokens, labels, torch.zeros(B, T, dtype=torch.int32), torch.zeros(B).long(),
        torch.arange(B), group_advantages(reward, group),
        reward, group, torch.zeros(B).bool(),
    )  # fmt: skip
    return made._replace(**fields)


def scores(labels: Tensor) -> LabelScores:
    torch.manual_seed(1)
    hidden = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    return LabelScores(hidden, torch.randn(V, D, dtype=torch.float64, requires_grad=True), labels)


def run(objective: GRPO, made: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    found = scores(made.labels_BT)
    numerator, denominator, metrics = objective(found, made)
    (gradient,) = torch.autograd.grad(numerator / denominator, found.hidden_BTD)
    return (numerator / denominator).detach(), gradient, metrics


def test_advantages_are_those_of_the_group_with_bessels_deviation() -> None:
    reward, group = torch.tensor([1.0, 2, 4, 3, 3, 3, 7]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    found = group_advantages(reward, group)
    first = reward[:3]
    torch.testing.assert_close(found[:3], (first - first.mean()) / (first.std() + 1e-4))
    assert found[3:].tolist() == [0.0] * 4
    torch.testing.assert_close(
        group_advantages(reward, group, scale=False)[:3], first - first.mean()
    )


def test_on_policy_the_value_is_zero_and_the_gradient_is_that_of_the_advantage() -> None:
    made = batch()
    value, gradient, metrics = run(GRPO(variant="grpo"), made)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    found = scores(made.labels_BT)
    tokens = (made.labels_BT != IGNORE_INDEX).sum(1)
    policy = -(
        made.advantage_B * found.logp().sum(1) / tokens
    ).mean()  # the policy gradient of the mean answer
    torch.testing.assert_close(gradient, torch.autograd.grad(policy, found.hidden_BTD)[0])
    assert gradient.abs().sum() > 0
    assert metrics["clip_ratio"][0].item() == 0.0


@pytest.mark.parametrize("variant", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_what_a_variant_divides_by(variant: Any) -> None:
    made = batch()
    tokens = (made.labels_BT != IGNORE_INDEX).sum(1).double()
    loss = -made.advantage_B.double()  # of every token, on-policy
    expected = {
        "dapo": (loss * tokens).sum() / tokens.sum(),
        "grpo": loss.mean(),
        "dr_grpo": (loss * tokens).sum() / (B * 20),
        "bnpo": (loss * tokens).sum() / tokens.sum(),
    }
    value, _, _ = run(GRPO(variant=variant, max_completion_tokens=20), made)
    assert value.item() == pytest.approx(expected[variant].item(), abs=1e-6)


def test_bnpo_is_a_mean_of_micro_batches_and_dapo_is_not() -> None:
    made = batch()
    halves = [
        PolicyBatch(*(None if field is None else field[part] for field in made))
        for part in (slice(0, 3), slice(3, 6))
    ]
    halves[1] = halves[1]._replace(group_B=halves[1].group_B - 1)
    whole = scores(made.labels_BT)
    sums: dict[str, list[Tensor]] = {}
    for variant in ("dapo", "bnpo"):
        parts = []
        for i, half in enumerate(halves):
            part = LabelScores(
                whole.hidden_BTD[3 * i : 3 * i + 3], whole.head_weight_VD, half.labels_BT
            )
            parts.append(GRPO(variant=variant)(part, half)[:2])
        sums[variant] = [
            sum(p[0] for p in parts) / sum(p[1] for p in parts),
            torch.stack([p[0] / p[1] for p in parts]).mean(),
        ]
    total, _, _ = run(GRPO(), made)
    torch.testing.assert_close(sums["dapo"][0].detach(), total)
    torch.testing.assert_close(sums["bnpo"][0], sums["bnpo"][1])
    assert abs(sums["bnpo"][0] - total).item() > 1e-3


def test_clipping_stops_the_gradient_on_the_far_side_only() -> None:
    made = batch()
    own = scores(made.labels_BT).logp().detach()
    for shift, clipped in (
        (1.0, made.advantage_B > 0),
        (-1.0, made.advantage_B < 0),
    ):  # ratio e, and 1/e
        far = made._replace(old_logp_BT=own - shift)
        _, gradient, metrics = run(GRPO(), far)
        still = gradient.abs().sum((1, 2)) == 0
        assert still.tolist() == clipped.tolist()
        tokens = (made.labels_BT != IGNORE_INDEX).sum(1)
        assert metrics["clip_ratio"][0].item() == tokens[clipped].sum().item()


def test_clip_higher_lets_ratios_rise_further() -> None:
    made = batch()
    rose = made._replace(old_logp_BT=scores(made.labels_BT).logp().detach() - 0.22)  # ratio 1.246
    low, high = (run(GRPO(epsilon_high=high), rose) for high in (None, 0.28))
    up = made.advantage_B > 0
    assert (low[1].abs().sum((1, 2)) == 0)[up].all()
    assert (high[1].abs().sum((1, 2)) > 0)[up].all()


def test_the_bias_correction_of_the_kl_changes_the_gradient_and_not_the_value() -> None:
    made = batch()
    ref = made._replace(ref_logp_BT=scores(made.labels_BT).logp().detach() - 0.3)
    with_it, without = (run(GRPO(beta=0.5, kl_bias_correction=flag), ref) for flag in (True, False))
    torch.testing.assert_close(with_it[0], without[0])
    kl = math.exp(-0.3) + 0.3 - 1  # of every token
    assert (with_it[2]["kl"][0] / with_it[2]["kl"][1]).item() == pytest.approx(kl, rel=1e-5)
    found = scores(made.labels_BT)
    mean_logp = found.logp().sum() / (made.labels_BT != IGNORE_INDEX).sum()
    extra = (
        0.5 * kl * torch.autograd.grad(mean_logp, found.hidden_BTD)[0]
    )  # what the product rule adds where the ratio is 1
    torch.testing.assert_close(with_it[1] - without[1], extra)


def test_columns_are_not_read_where_nothing_was_sampled() -> None:
    made = batch()
    own = scores(made.labels_BT).logp().detach()
    sampled = made.labels_BT != IGNORE_INDEX
    columns = {
        "old_logp_BT": torch.where(sampled, own, -1e9),
        "ref_logp_BT": torch.where(sampled, own, -1e9),
    }
    value, gradient, _ = run(GRPO(beta=0.1), made._replace(**columns))
    clean, expected, _ = run(GRPO(beta=0.1), made._replace(old_logp_BT=own, ref_logp_BT=own))
    torch.testing.assert_close(value, clean)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon must be positive"),
        ({"epsilon": 1.0}, r"epsilon must be below 1"),
        ({"beta": -0.1}, r"beta must be zero or positive"),
        ({"variant": "dr_grpo"}, r"'dr_grpo' divides by max_completion_tokens, found None"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPO(**options)


def test_a_reference_is_needed_only_for_the_kl() -> None:
    assert GRPO().needs == {"rollout"}
    assert GRPO(beta=0.1).needs == {"rollout", "ref_logp"}


@pytest.mark.parametrize(
    ("variant", "scale_rewards", "scaled"),
    [
        ("dapo", None, True),
        ("dr_grpo", None, False),
        ("dapo", False, False),
        ("dr_grpo", True, True),
    ],
)
def test_scale_rewards_overrules_the_variant(
    variant: Any, scale_rewards: bool | None, scaled: bool
) -> None:
    reward, group = torch.tensor([1.0, 2, 4]), torch.zeros(3).long()
    found = GRPO(variant=variant, scale_rewards=scale_rewards, max_completion_tokens=8).advantages(
        reward, group
    )
    centred = reward - reward.mean()
    torch.testing.assert_close(found, centred / (reward.std() + 1e-4) if scaled else centred)
