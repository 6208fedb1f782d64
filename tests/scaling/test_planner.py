"""Budgets: whichever quantity is missing, the same run comes out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.planner import (
    DAY,
    Rate,
    lifetime_flops,
    lifetime_optimum,
    solve,
)
from lit_pretrain.scaling.published import published_law

PER_TOKEN, RATE = 5e10, Rate(8000.0, 0.9)
positive = st.floats(1e3, 1e14)


@given(tokens=positive, devices=st.integers(1, 20000), price=st.floats(0.1, 20))
def test_every_quantity_gives_the_others(tokens: float, devices: int, price: float) -> None:
    common: dict[str, Any] = {
        "flops_per_token": PER_TOKEN,
        "rate": RATE,
        "devices": devices,
        "price": price,
    }
    first = solve(tokens=tokens, **common)
    assert first.seconds is not None
    for name in ("flops", "dollars", "seconds"):
        other = solve(**{name: getattr(first, name)}, **common)
        assert other.tokens == pytest.approx(tokens)
        assert other.dollars == pytest.approx(first.dollars)


def test_arithmetic() -> None:
    found = solve(
        flops_per_token=PER_TOKEN, rate=RATE, devices=10, price=2.0, tokens=8000 * 10 * 0.9 * DAY
    )
    assert (found.seconds, found.device_hours, found.dollars) == pytest.approx((DAY, 240.0, 480.0))
    assert found.flops == PER_TOKEN * found.tokens


@given(tokens=st.floats(1e9, 1e13), days=st.floats(0.5, 300))
def test_a_length_and_a_time_ask_for_devices(tokens: float, days: float) -> None:
    common: dict[str, Any] = {"flops_per_token": PER_TOKEN, "rate": RATE, "tokens": tokens}
    found = solve(seconds=days * DAY, devices=None, **common)
    assert found.solved == "devices"
    assert found.seconds is not None
    assert found.seconds <= days * DAY * (1 + 1e-9)
    fewer = solve(devices=max(1, found.devices - 1), **common).seconds
    assert fewer is not None
    assert found.devices == 1 or fewer > days * DAY * (1 - 1e-9)


def test_the_goodput_of_llama3_405b() -> None:
    # 15.6 T tokens at 40 % of 989 TFLOP/s; reported: 30.84 M GPU-hours on 16,384 H100
    per_token = 2.62542e12
    rate = Rate(0.40 * 989e12 / per_token)
    ideal = solve(flops_per_token=per_token, rate=rate, devices=16384, tokens=15.6e12)
    assert ideal.device_hours == pytest.approx(28.76e6, rel=1e-3)
    found = solve(
        flops_per_token=per_token,
        rate=rate,
        devices=16384,
        tokens=15.6e12,
        seconds=30.84e6 / 16384 * 3600,
    )
    assert found.solved == "goodput"
    assert found.goodput == pytest.approx(0.9326, abs=2e-4)
    # 6 N D at 400 TFLOP/s explains less: the reported hours are 17 % more
    assert pytest.approx(1.17, abs=0.005) == 30.84e6 / (3.799e25 / 400e12 / 3600)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({}, "found none"),
        ({"tokens": 1e9, "flops": 1e20}, "tokens and FLOPs"),
        ({"tokens": 1e9, "dollars": 5.0}, "tokens and dollars"),
        ({"dollars": 5.0}, "--price"),
        ({"tokens": -1.0}, "must be positive"),
        ({"tokens": float("nan")}, "must be positive"),
        ({"tokens": 1e12, "seconds": 60.0}, "more than the"),
    ],
)
def test_mistakes(given_: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        solve(flops_per_token=PER_TOKEN, rate=RATE, devices=2, **given_)


def test_without_a_rate_there_is_no_time_and_no_time_budget() -> None:
    found = solve(flops_per_token=PER_TOKEN, rate=Rate(None), devices=2, tokens=1e9)
    assert (found.seconds, found.device_hours, found.dollars) == (None, None, None)
    with pytest.raises(UserError, match="tokens_per_second"):
        solve(flops_per_token=PER_TOKEN, rate=Rate(None), devices=2, seconds=60.0)


# ------------------------------------------------------------------ training and serving


def tokens_of_optimum(name: str, n: float) -> float:
    """D* of the budget for which n is optimal."""
    low, high = 1e15, 1e30
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if published_law(name).optimum(middle).n < n else (low, middle)
    return published_law(name).optimum(low).d


@pytest.mark.parametrize(
    ("name", "n", "share"), [("hoffmann", 7.1e9, 0.163), ("besiroglu", 6.1e9, 0.29)]
)
def test_13b_quality_and_2t_tokens_served(name: str, n: float, share: float) -> None:
    found = lifetime_optimum(published_law(name), 13e9, tokens_of_optimum(name, 13e9), 2e12)
    assert found.n == pytest.approx(n, rel=0.01)
    assert found.share == pytest.approx(share, abs=0.003)
    if name == "hoffmann":
        assert found.saved == pytest.approx(1.63e22, rel=0.01)
    assert float(published_law(name).loss(found.n, found.d)) == pytest.approx(
        float(published_law(name).loss(13e9, tokens_of_optimum(name, 13e9))), rel=1e-9
    )


def test_no_size_is_cheaper() -> None:
    found_law, served = published_law("besiroglu"), 5e11
    found = lifetime_optimum(found_law, 3e9, 1e11, served)
    goal = float(found_law.loss(3e9, 1e11))
    p = found_law.params
    sizes = np.geomspace(found.n / 3, found.n * 3, 999)
    left = goal - p["E"] - p["A"] / sizes ** p["alpha"]
    tokens = (p["B"] / left[left > 0]) ** (1 / p["beta"])
    costs = [lifetime_flops(n, d, served) for n, d in zip(sizes[left > 0], tokens, strict=True)]
    assert min(costs) >= found.flops * (1 - 1e-9)
    assert min(costs) == pytest.approx(found.flops, rel=1e-4)


def test_without_serving_it_is_the_compute_optimum() -> None:
    best = published_law("besiroglu").optimum(1e21)
    found = lifetime_optimum(published_law("besiroglu"), best.n, best.d, 0.0)
    assert found.n == pytest.approx(best.n, rel=1e-4)
    assert found.saved == pytest.approx(0.0, abs=1e21 * 1e-6)


def test_what_cannot_be_served() -> None:
    with pytest.raises(UserError, match="chinchilla law"):
        lifetime_optimum(published_law("kaplan"), 1e9, 1e10, 1e9)
    with pytest.raises(UserError, match="negative"):
        lifetime_optimum(published_law("besiroglu"), 1e9, 1e10, -1.0)
