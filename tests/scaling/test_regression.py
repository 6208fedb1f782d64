"""Regression: known laws come back, and the optimum is that of independent optimisers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import PARAMETERS, Floats, Law, coordinates, log_loss
from lit_pretrain.scaling.published import published_law as published
from lit_pretrain.scaling.regression import fit


def design(budgets: int = 5, sizes: int = 7, low: float = 1e18) -> tuple[Floats, Floats]:
    """IsoFLOP sweeps around about 20 tokens per parameter."""
    c = np.repeat(low * 10 ** (0.6 * np.arange(budgets)), sizes)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(1 / 6, 6, sizes), budgets)
    return n, c / 6 / n


@settings(max_examples=15)
@given(
    e=st.floats(0.8, 3),
    alpha=st.floats(0.2, 0.6),
    beta=st.floats(0.2, 0.6),
    n_share=st.floats(0.1, 1),
    d_share=st.floats(0.1, 1),
    form=st.sampled_from(["chinchilla", "tied"]),
    kind=st.sampled_from(["huber", "lad"]),
)
def test_noiseless_laws_come_back(
    e: float, alpha: float, beta: float, n_share: float, d_share: float, form: str, kind: str
) -> None:
    n, d = design()
    truth = {"E": e, "alpha": alpha, "beta": beta if form == "chinchilla" else alpha}
    truth |= {"A": n_share * 1e9**alpha, "B": d_share * 2e10 ** truth["beta"]}
    law = Law(form, truth)
    found = fit(law.form, n, d, law.loss(n, d), kind=kind)
    assert dict(found.law.params) == pytest.approx(truth, rel=1e-6)
    assert np.abs(found.residuals).max() < 1e-9


@pytest.mark.parametrize("name", ["besiroglu", "hoffmann", "kaplan", "muennighoff"])
def test_published_laws_come_back(name: str) -> None:
    law, rng = published(name), np.random.default_rng(0)
    n, d = design()
    unique = d / rng.choice([1, 2, 8, 30], size=len(d))
    found = fit(law.form, n, d, law.loss(n, d, unique), unique)
    assert dict(found.law.params) == pytest.approx(dict(law.params), rel=1e-6)


def noisy(seed: int, sigma: float = 0.005) -> tuple[Floats, Floats, Floats]:
    n, d = design()
    return (
        n,
        d,
        published("besiroglu").loss(n, d)
        * np.exp(np.random.default_rng(seed).normal(0, sigma, len(n))),
    )


def test_huber_optimum_is_no_higher_than_that_of_lbfgs_from_many_starts() -> None:
    n, d, loss = noisy(1)
    found = fit("chinchilla", n, d, loss)

    def objective(theta: Floats) -> float:
        r = np.abs(log_loss("chinchilla", theta, n, d) - np.log(loss))
        return 1e3 * float(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum())

    starts = [
        [e, a, b, x, y]
        for e in (0, 0.7)
        for a in (3, 8)
        for b in (3, 8)
        for x in (0.3,)
        for y in (0.2, 0.5)
    ]
    reference = min(
        (minimize(objective, start, method="L-BFGS-B") for start in starts),
        key=lambda result: result.fun,
    )
    assert found.objective * 1e3 == pytest.approx(objective(coordinates(found.law)), rel=1e-9)
    assert found.objective * 1e3 <= reference.fun * (1 + 1e-9)
    assert found.objective * 1e3 == pytest.approx(reference.fun, rel=1e-3)


def test_absolute_optimum_is_stationary_for_a_linear_programme_of_its_own() -> None:
    n, d, loss = noisy(2)
    found = fit("chinchilla", n, d, loss, kind="lad")
    assert found.objective == pytest.approx(np.abs(found.residuals).sum())
    # At its exponents the law is linear in E, A and B: the primal programme over them, weighted
    # alike, finds nothing lower.
    law = found.law
    columns = (
        np.stack(
            [np.ones_like(n), n ** -law.params["alpha"] * 1e3, d ** -law.params["beta"] * 1e3], -1
        )
        / law.loss(n, d)[:, None]
    )
    base = columns @ [law.params["E"], law.params["A"] / 1e3, law.params["B"] / 1e3]
    ones = np.eye(len(n))
    rows = np.block([[columns, -ones], [-columns, -ones]])
    limit = np.concatenate([base + found.residuals, -base - found.residuals])
    cost = np.concatenate([np.zeros(3), np.ones(len(n))])
    primal = linprog(cost, A_ub=rows, b_ub=limit, bounds=[(None, None)] * 3 + [(0, None)] * len(n))
    assert primal.fun == pytest.approx(found.objective, rel=1e-7)
    assert found.objective <= np.abs(fit("chinchilla", n, d, loss).residuals).sum()


@pytest.mark.parametrize("kind", ["huber", "lad"])
def test_outliers_hardly_move_the_exponent(kind: str) -> None:
    moved = []
    for seed in range(9):
        n, d, loss = noisy(seed)
        rng = np.random.default_rng(1000 + seed)
        bad = rng.choice(len(n), size=max(1, round(0.05 * len(n))), replace=False)
        spoilt = loss.copy()
        spoilt[bad] *= 1.1
        a = [
            fit("chinchilla", n, d, losses, kind=kind).law.exponents.a for losses in (loss, spoilt)
        ]
        moved.append(abs(a[1] - a[0]))
    assert np.median(moved) <= 0.015


def test_runs_that_determine_nothing_are_refused() -> None:
    n, _ = design()
    with pytest.raises(UserError, match="do not determine a chinchilla law"):
        fit("chinchilla", n, np.full_like(n, 1e10), published("besiroglu").loss(n, 1e10))
    n, d = n[:5], np.geomspace(1e9, 1e10, 5)
    with pytest.raises(UserError, match="5 runs cannot determine the 5 parameters"):
        fit("chinchilla", n, d, published("besiroglu").loss(n, d))
    with pytest.raises(UserError, match="delta=0"):
        fit("chinchilla", *noisy(0), delta=0)
    assert len(PARAMETERS["chinchilla"]) == 5


def repeating(form: str, seed: int, sigma: float) -> tuple[Law, Floats, Floats, Floats, Floats]:
    """Draw a law of a form and runs of it that determine it, a third of them on repeated data."""
    rng = np.random.default_rng(seed)
    n, d = design(budgets=5, sizes=6)
    e, alpha, beta = rng.uniform(0.8, 3), rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.5)
    if form == "tied":
        beta = alpha
    params = {"E": e, "alpha": alpha, "beta": beta, "R_D": 15.0, "R_N": 5.0}
    params |= {"A": rng.uniform(0.3, 1) * 1e9**alpha, "B": rng.uniform(0.3, 1) * 2e10**beta}
    if form == "kaplan":
        # Both terms are of one size at the middle of the design, where the loss is 3.
        half = 3 ** (1 / beta) / 2
        params = {"N_c": 1e9 * half ** (beta / alpha), "D_c": 2e10 * half}
        params |= {"alpha_N": alpha, "alpha_D": beta}
    kept = [*PARAMETERS[form], *(["beta"] if form == "tied" else [])]
    law = Law(form, {name: params[name] for name in kept})
    unique = d / rng.choice([1, 2, 8, 30], size=len(d))
    return law, n, d, unique, law.loss(n, d, unique) * np.exp(rng.normal(0, 1, len(n)) * sigma)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", PARAMETERS)
@pytest.mark.parametrize("sigma", [0.0, 0.005])
def test_the_order_of_runs_changes_no_bit(form: str, sigma: float) -> None:
    for seed in (1, 2):
        law, n, d, unique, loss = repeating(form, seed, sigma)
        found = fit(law.form, n, d, loss, unique)
        i = np.random.default_rng(seed).permutation(len(n))
        again = fit(law.form, n[i], d[i], loss[i], unique[i])
        assert again.law == found.law
        assert again.objective == found.objective
        assert np.array_equal(again.residuals, found.residuals[i])
        true = np.abs(np.log(loss) - log_loss(law.form, coordinates(law), n, d, unique))
        if sigma == 0:
            assert dict(found.law.params) == pytest.approx(dict(law.params), rel=1e-6)
        else:  # the optimum fits no worse than the law that made the runs
            bound = np.where(true <= 1e-3, true**2 / 2, 1e-3 * (true - 5e-4)).sum()
            assert found.objective < bound


def test_laws_of_repeated_data_that_starts_used_to_miss() -> None:
    """Seeds whose fit from the former starts ended where R_N had no effect, and was refused."""
    law = published("muennighoff")
    n, d = design()
    for sigma in (0.005, 0.01):
        rng = np.random.default_rng(5)
        unique = d / rng.choice([1, 2, 8, 30], size=len(d))
        loss = law.loss(n, d, unique) * np.exp(rng.normal(0, sigma, len(n)))
        found = fit("data", n, d, loss, unique)
        assert found.law.params["R_D"] == pytest.approx(16, rel=0.05)
        assert found.law.params["R_N"] == pytest.approx(5.3, rel=0.05)
        assert not found.at_limit


def test_what_is_free_is_named() -> None:
    law, n, d, _, _ = repeating("data", 1, 0.0)
    loss = law.loss(n, d)
    with pytest.raises(UserError, match=r"do not determine a data law.* R_D .*runs that repeat"):
        fit("data", n, d, loss, d)


def test_a_law_without_a_floor_is_found() -> None:
    """E = 0 has no logarithm: its fit ended in "the runs do not determine a chinchilla law"."""
    n, d = design()
    loss = 400 * n**-0.34 + 2000 * d**-0.37
    found = fit("chinchilla", n, d, loss)
    assert found.at_limit == ("E",)
    assert found.law.params["alpha"] == pytest.approx(0.34, abs=0.01)
    assert np.abs(found.residuals).max() < 1e-3
