"""Forecast: what is asked of a law, its intervals, and where it becomes an extrapolation."""

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.fitted import fit_document, fit_runs
from lit_pretrain.scaling.forecast import forecast
from lit_pretrain.scaling.law import Law

from .synthetic import CHINCHILLA, sweeps


def test_a_run_by_any_two_of_n_d_and_flops() -> None:
    law, rest = CHINCHILLA, {"largest_compute": 1e22}
    best = forecast(law, flops=6e21, **rest)
    assert (best.n, best.d) == pytest.approx(law.optimum(6e21))
    by = [
        forecast(law, n=1e10, d=1e11, **rest),
        forecast(law, n=1e10, flops=6e21, **rest),
        forecast(law, d=1e11, flops=6e21, **rest),
    ]
    for found in by:
        assert (found.n, found.d, found.c) == pytest.approx((1e10, 1e11, 6e21))
        assert found.loss == pytest.approx(float(law.loss(1e10, 1e11)))
        assert found.loss > best.loss
        assert (found.ci95, found.run95, found.beyond) == (None, None, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "say which run"),
        ({"n": 1e9}, "say which run"),
        ({"n": 1e9, "d": 1e9, "flops": 1e19}, "one too many"),
        ({"flops": -1.0}, "--flops -1"),
    ],
)
def test_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        forecast(CHINCHILLA, largest_compute=1e22, **given)  # type: ignore[arg-type]


def test_ten_times_the_largest_run_is_far() -> None:
    assert not forecast(CHINCHILLA, flops=9.9e22, largest_compute=1e22).far
    assert forecast(CHINCHILLA, flops=1.01e23, largest_compute=1e22).far


def test_intervals() -> None:
    runs = sweeps(sigma=0.005, sizes=9, seed=4)
    fitted = fit_runs(runs, draws=60, seed=1)
    near, far = (
        forecast(
            fitted.fit.law,
            flops=c,
            largest_compute=runs.largest_compute,
            draws=fitted.draws,
            residuals=fitted.fit.residuals,
        )
        for c in (1e20, 1e25)
    )
    for found in (near, far):
        assert found.ci95 is not None
        assert found.run95 is not None
        assert found.n_ci95 is not None
        assert found.ci95[0] < found.loss < found.ci95[1]
        assert found.n_ci95[0] < found.n < found.n_ci95[1]
        assert found.run95[0] < found.ci95[0] < found.ci95[1] < found.run95[1]
    assert near.ci95 is not None
    assert far.ci95 is not None
    assert far.ci95[1] / far.ci95[0] > near.ci95[1] / near.ci95[0]
    assert (
        forecast(fitted.fit.law, n=1e9, d=1e10, largest_compute=1e21, draws=fitted.draws).n_ci95
        is None
    )


def test_repeated_data_costs_loss() -> None:
    law = Law("data", {**CHINCHILLA.params, "R_D": 15.0, "R_N": 5.0})
    plain, scarce = (
        forecast(law, n=1e9, d=2e10, unique=unique, largest_compute=1e22).loss
        for unique in (None, 1e9)
    )
    assert scarce > plain


def test_a_fit_says_everything() -> None:
    runs = sweeps(sigma=0.003)
    found = fit_document(fit_runs(runs, drop_highest=2, draws=5))
    assert found["params"].keys() == found["ci95"].keys() == {"E", "A", "B", "alpha", "beta"}
    assert found["n_runs"] == len(runs) - 2
    assert found["dropped"] == [runs.labels[i] for i in sorted(np.argsort(runs.loss)[-2:])]
    assert found["optimum"].keys() == {"a", "b", "ci95"}
    assert found["params_counted"] == "total"
    residuals = np.array([item["residual"] for item in found["residuals"]])
    assert np.where(
        np.abs(residuals) <= 1e-3, residuals**2 / 2, 1e-3 * (np.abs(residuals) - 5e-4)
    ).sum() == pytest.approx(found["objective"])
    kept = [i for i in range(len(runs)) if runs.labels[i] not in found["dropped"]]
    law = Law("chinchilla", found["params"])
    np.testing.assert_allclose(
        residuals,
        np.log(runs.loss[kept]) - np.log(law.loss(runs.n[kept], runs.d[kept])),
        atol=1e-12,
    )


def test_exponents_that_are_not_positive_are_refused() -> None:
    rising = Law("chinchilla", {"E": 1.5, "A": 0.02, "B": 300.0, "alpha": -0.1, "beta": 0.3})
    n = np.tile(np.geomspace(1e8, 1e10, 7), 5)
    d = np.repeat(np.geomspace(1e9, 1e11, 5), 7)
    runs = sweeps(budgets=5)
    import dataclasses

    rising_runs = dataclasses.replace(runs, n=n, d=d, c=6 * n * d, loss=rising.loss(n, d))
    with pytest.raises(
        UserError,
        match=(
            r"exponent alpha of the chinchilla law that fits best is -0\.\d+, not positive: .* fall"
            r" with N"
        ),
    ):
        fit_runs(rising_runs)
    with pytest.raises(UserError, match="needs the unique tokens of every run"):
        fit_runs(runs, "data")
    with pytest.raises(UserError, match="drop_highest=35"):
        fit_runs(runs, drop_highest=35)
