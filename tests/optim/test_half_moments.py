"""Moments in bf16: rounded without a bias, in half the memory, near the steps of fp32."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.optim import AdamW, MuonAdamW
from lit_pretrain.optim.half_moments import store_moment_
from lit_pretrain.optim.optimizer import OptimizerRecipe
from lit_pretrain.scaling.memory import Layout, states

ROLES: dict[str, Any] = {"matrix": "matrix", "table": "embedding", "gain": "vector"}
RECIPES: dict[str, Any] = {
    "AdamW": lambda **more: AdamW(lr=0.01, betas=(0.9, 0.95), **more),
    "MuonAdamW": lambda **more: MuonAdamW(momentum_warmup_steps=0, **more),
}


def parameters() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"matrix": (24, 16), "table": (40, 16), "gain": (16,)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()
    }


def step(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    draw = torch.Generator().manual_seed(100 + number)
    for parameter in named.values():
        parameter.grad = 0.5 + torch.randn(parameter.shape, generator=draw)
    optimizer.step()


def moved(recipe: OptimizerRecipe, steps: int) -> tuple[dict[str, Tensor], Any]:
    named = parameters()
    optimizer = recipe.build(named.items(), ROLES)
    for number in range(steps):
        step(named, optimizer, number)
    first = parameters()
    return {name: p.detach() - first[name].detach() for name, p in named.items()}, optimizer


def test_rounding_is_right_on_average() -> None:
    """Of either sign; what bf16 can hold stays as it is."""
    state = {"mean": torch.zeros(40_000, dtype=torch.bfloat16)}
    noise = torch.Generator().manual_seed(0)
    for value in (1.001, -1.001, 3e-5):
        store_moment_(state, "mean", torch.full((40_000,), value), noise)
        assert len(state["mean"].unique()) == 2
        assert state["mean"].double().mean().item() == pytest.approx(value, rel=1e-4)
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), -float("inf")])
    state = {"mean": torch.zeros(6, dtype=torch.bfloat16)}
    store_moment_(state, "mean", exact.clone(), noise)
    assert torch.equal(state["mean"].float(), exact)


@pytest.mark.parametrize("name", RECIPES)
def test_steps_are_near_those_of_fp32(name: str) -> None:
    found, optimizer = moved(RECIPES[name](moment_dtype="bf16"), 30)
    expected, plain = moved(RECIPES[name](), 30)
    for key, value in expected.items():
        assert (found[key] - value).norm() < 0.05 * value.norm(), key
        assert not torch.equal(found[key], value), key
    for kept in optimizer.state.values():
        assert {x.dtype for k, x in kept.items() if k != "step"} == {torch.bfloat16}
    names = [set(kept) for kept in plain.state.values()]
    assert [set(kept) for kept in optimizer.state.values()] == names


def test_a_slow_average_does_not_stand_still() -> None:
    """A second moment that decays by 0.9999; rounded to the nearest it would never rise again."""
    weight = nn.Parameter(torch.zeros(4096))
    recipe = AdamW(betas=(0.9, 0.9999), moment_dtype="bf16")
    optimizer = recipe.build([("weight", weight)], {"weight": "vector"})
    for number in range(200):
        weight.grad = torch.full((4096,), 1.0 if number == 0 else 3.0)
        optimizer.step()
    expected = 1e-4 * (0.9999**199 + 9 * sum(0.9999**k for k in range(199)))
    mean = optimizer.state[weight]["exp_avg_sq"].float().mean().item()
    assert mean == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("before", [None, "bf16"])
def test_a_resume_is_exact_and_goes_on_from_wider_moments(name: str, before: str | None) -> None:
    """torch restores moments in the type of their weights, here of fp32 ones too."""
    first, second = parameters(), parameters()
    one = RECIPES[name](moment_dtype=before).build(first.items(), ROLES)
    step(first, one, 0)
    two = RECIPES[name](moment_dtype="bf16").build(second.items(), ROLES)
    for key, parameter in first.items():
        second[key].data.copy_(parameter.data)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    step(first, one, 1)
    step(second, two, 1)
    for key, parameter in first.items():
        if before == "bf16":
            assert torch.equal(parameter, second[key]), key
        torch.testing.assert_close(second[key], parameter, rtol=0.01, atol=0.01)
    for kept in two.state.values():
        assert {x.dtype for k, x in kept.items() if k != "step"} == {torch.bfloat16}


@pytest.mark.parametrize("name", RECIPES)
def test_weights_may_be_bf16_too(name: str) -> None:
    named = {key: nn.Parameter(p.detach().bfloat16()) for key, p in parameters().items()}
    optimizer = RECIPES[name](moment_dtype="bf16").build(named.items(), ROLES)
    for number in range(2):
        for parameter in named.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert all(p.isfinite().all() for p in named.values()), number
    assert all(p.dtype == torch.bfloat16 for p in named.values())


def test_copies_of_a_network_draw_alike() -> None:
    recipe = MuonAdamW(moment_dtype="bf16")
    assert all(
        torch.equal(a, b)
        for a, b in zip(moved(recipe, 3)[0].values(), moved(recipe, 3)[0].values(), strict=True)
    )


def test_the_plan_counts_half() -> None:
    config = ModelConfig(vocab_size=512, n_layer=2, width=64, n_head=2)
    plain, half = (
        states(config, Layout(rows=1, seq_len=64, moment_bytes=recipe.moment_bytes))
        for recipe in (AdamW(), AdamW(moment_dtype="bf16"))
    )
    assert half.moments == plain.moments / 2
    assert half.parameters == plain.parameters
