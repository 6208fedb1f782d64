"""Scaling and clipping in one pass, against torch's own two."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_pretrain.optim.clip import global_norm, scale_and_clip_


def made(seed: int) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    found = [nn.Parameter(torch.zeros(shape)) for shape in ((7, 5), (11,), (3, 3, 2))]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    return [*found, nn.Parameter(torch.zeros(4))]  # the last has no gradient


@given(st.integers(0, 50), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_equals_scaling_then_torchs_clipping(seed: int, scale: float, limit: float) -> None:
    ours, theirs = made(seed), made(seed)
    for parameter in theirs:
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    want = nn.utils.clip_grad_norm_(theirs, limit)
    got = scale_and_clip_(ours, scale, limit)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    for a, b in zip(ours, theirs, strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_no_limit_only_scales() -> None:
    parameters = made(0)
    before = [p.grad.clone() for p in parameters if p.grad is not None]
    scale_and_clip_(parameters, torch.tensor(0.5), None)
    after = [p.grad for p in parameters if p.grad is not None]
    assert all(torch.equal(a, b * 0.5) for a, b in zip(after, before, strict=True))


def test_the_norm_is_that_of_all_gradients_together() -> None:
    parameters = made(3)
    exact = math.sqrt(
        sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)
    )
    assert float(global_norm(parameters)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_visible(bad: float) -> None:
    parameters = made(1)
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = bad
    assert not math.isfinite(float(scale_and_clip_(parameters, 1.0, 1.0)))
