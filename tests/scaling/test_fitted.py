"""Bootstrap: the same seed gives the same intervals, and intervals hold what they promise."""

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.fitted import (
    bootstrap,
    exponent_intervals,
    interval,
    param_intervals,
    usable,
)
from lit_pretrain.scaling.law import Floats, Law
from lit_pretrain.scaling.published import published_law as published
from lit_pretrain.scaling.regression import fit

TRUTH = published("besiroglu")


def noisy(seed: int) -> tuple[Floats, Floats, Floats]:
    c = np.repeat(10.0 ** np.arange(18, 23), 12)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(1 / 6, 6, 12), 5)
    d = c / 6 / n
    return n, d, TRUTH.loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, 0.005, len(n)))


def test_the_seed_decides() -> None:
    runs = noisy(0)
    law = fit("chinchilla", *runs).law
    first, again, other = (bootstrap(law, *runs, draws=8, seed=seed) for seed in (1, 1, 2))
    assert [drawn.params for drawn in first.laws] == [drawn.params for drawn in again.laws]
    assert [drawn.params for drawn in first.laws] != [drawn.params for drawn in other.laws]
    assert param_intervals(first).keys() == law.params.keys()


def test_resamples_from_the_fit_end_where_a_fit_from_scratch_ends() -> None:
    n, d, loss = noisy(3)
    law = fit("chinchilla", n, d, loss).law
    i = np.random.default_rng(5).integers(len(n), size=len(n))
    for kind in ("huber", "lad"):
        warm = fit("chinchilla", n[i], d[i], loss[i], start=law, kind=kind)
        cold = fit("chinchilla", n[i], d[i], loss[i], kind=kind)
        assert warm.objective == pytest.approx(cold.objective, rel=1e-5)
        assert warm.law.exponents.a == pytest.approx(cold.law.exponents.a, abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_intervals_cover_the_truth() -> None:
    sets, held_a, held_loss = 50, 0, 0
    target = TRUTH.optimum(1e24)
    for seed in range(sets):
        runs = noisy(seed)
        law = fit("chinchilla", *runs).law
        draws = bootstrap(law, *runs, draws=100, seed=seed)
        low, high = exponent_intervals(draws)["a"]
        held_a += low <= TRUTH.exponents.a <= high
        low, high = interval(np.array([float(drawn.loss(*target)) for drawn in draws.laws]))
        held_loss += low <= float(TRUTH.loss(*target)) <= high
    assert 0.88 <= held_a / sets <= 1, held_a
    assert 0.88 <= held_loss / sets <= 1, held_loss


def test_intervals_cover_the_truth_in_a_few_sets() -> None:
    held = 0
    for seed in range(100, 108):
        runs = noisy(seed)
        draws = bootstrap(fit("chinchilla", *runs).law, *runs, draws=40, seed=seed)
        low, high = exponent_intervals(draws)["a"]
        held += low <= TRUTH.exponents.a <= high
    assert held >= 5  # of 8 at 95 %, fewer have a chance of 1 in 2,700


def test_what_is_not_usable() -> None:
    assert usable(TRUTH)
    assert not usable(Law("chinchilla", {**TRUTH.params, "beta": -0.1}))
    assert not usable(Law("chinchilla", {**TRUTH.params, "A": np.inf}))
    with pytest.raises(UserError, match="bootstrap=1"):
        bootstrap(TRUTH, *noisy(0), draws=1, seed=0)
