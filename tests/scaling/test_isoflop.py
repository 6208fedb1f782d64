"""IsoFLOP: minima and exponents of surfaces that are known, their bias, and the sweeps that are
refused.
"""

import dataclasses

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.isoflop import bias_warning, isoflop
from lit_pretrain.scaling.published import published_law as published
from lit_pretrain.scaling.runs import Runs

from .synthetic import CHINCHILLA, sweeps


def parabolic(a: float = 0.6, sigma: float = 0.0, seed: int = 0, budgets: int = 4) -> Runs:
    """Losses that are parabolas in ln N exactly, with N* = 0.1 C^a."""
    c = np.repeat(10.0 ** np.arange(18, 18 + budgets), 6)
    best = 0.1 * c**a
    n = best * np.tile(np.geomspace(1 / 3, 3, 6), budgets)
    loss = 4 - 0.1 * np.log10(c) + 0.05 * np.log(n / best) ** 2
    loss = loss + np.random.default_rng(seed).normal(0, sigma, len(n))
    return Runs(tuple(map(str, range(len(n)))), n, c / 6 / n, c, loss, None, "total", "nats")


@pytest.mark.parametrize("a", [0.3, 0.5, 0.7])
def test_parabolas_come_back(a: float) -> None:
    found = isoflop(parabolic(a))
    assert found.n_line.slope == pytest.approx(a, abs=1e-9)
    assert found.d_line.slope == pytest.approx(1 - a, abs=1e-9)
    assert found.n_line.at(1e24) == pytest.approx(0.1 * 1e24**a, rel=1e-6)
    assert found.minima[0].loss == pytest.approx(4 - 1.8, abs=1e-9)
    interval = found.interval_of("a")
    assert interval is not None
    assert interval == pytest.approx((a, a), abs=1e-6)
    assert not found.warnings


def test_bias_of_wide_sweeps() -> None:
    """On a noiseless Chinchilla surface the exponent is exact and D* is not: -2.9 % at 1e24
    FLOPs for 8 times either side.
    """
    law = published("hoffmann")
    for reach, bias in ((8.0, -0.0288), (2.0, -0.0037)):
        runs = sweeps(law, budgets=5, sizes=16, below=reach, above=reach)
        found = isoflop(runs, draws=0)
        assert found.n_line.slope == pytest.approx(law.exponents.a, abs=1e-6)
        assert found.d_line.at(1e24) / law.optimum(1e24).d - 1 == pytest.approx(bias, abs=0.006)
        assert any("wide sweep" in message for message in found.warnings) == (reach > 4)
    local = isoflop(sweeps(law, budgets=5, sizes=16, below=8, above=8), within=2.5, draws=0)
    assert abs(local.d_line.at(1e24) / law.optimum(1e24).d - 1) < 0.008
    assert not any("wide sweep" in message for message in local.warnings)


def test_intervals_cover_the_exponent() -> None:
    held, line = 0, 0
    for seed in range(60):
        found = isoflop(parabolic(0.5, sigma=0.002, seed=seed), draws=300, seed=seed)
        low, high = found.interval_of("a") or (np.nan, np.nan)
        held += low <= 0.5 <= high
        line += found.line_interval[0] <= 0.5 <= found.line_interval[1]
    assert 0.88 <= held / 60 <= 1, held
    assert 0.88 <= line / 60 <= 1, line


def test_one_sided_sweeps_are_named() -> None:
    found = isoflop(sweeps(below=8.0, above=1.7), draws=0)
    assert (
        sum("one-sided" in message and "larger models" in message for message in found.warnings)
        == 4
    )
    found = isoflop(sweeps(below=1.7, above=8.0), draws=0)
    assert any("one-sided" in message and "smaller models" in message for message in found.warnings)


def test_a_parabola_through_three_runs_has_no_interval() -> None:
    found = isoflop(sweeps(sizes=3, below=2.5, above=2.5))
    assert found.interval_of("a") is None
    assert found.optimum_interval("n", 1e24) is None
    assert any("goes through all of them" in message for message in found.warnings)


def test_budgets_may_differ_by_a_rounded_step() -> None:
    runs = parabolic(0.5)
    shaken = dataclasses.replace(runs, c=runs.c * np.tile([1.0, 1.04, 0.99, 1.02, 1.0, 0.97], 4))
    assert len(isoflop(shaken, draws=0).minima) == 4


def flipped(runs: Runs) -> Runs:
    return dataclasses.replace(runs, loss=10 - runs.loss)


REFUSED = {
    "fewer than three budgets": (lambda: sweeps(budgets=2), "2 FLOP budgets .* at least 3"),
    "edge, larger": (
        lambda: sweeps(below=16, above=0.9),
        "minimum is at the edge of the sweep .* add larger models",
    ),
    "edge, smaller": (
        lambda: sweeps(below=0.9, above=16),
        "minimum is at the edge of the sweep .* add smaller models",
    ),
    "spread": (lambda: sweeps(below=1.5, above=1.5), r"factor of 2\.25 only"),
    "two sizes": (lambda: sweeps(sizes=2), "2 sizes; a parabola needs at least 3"),
    "no minimum": (lambda: flipped(sweeps()), "no minimum in N"),
    "falling N*": (lambda: parabolic(-0.1), r"N\* falls with compute"),
    "falling D*": (lambda: parabolic(1.1), r"D\* falls with compute"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        isoflop(make())


def test_within_must_leave_three_sizes() -> None:
    with pytest.raises(UserError, match=r"within a factor of 1\.1 of the minimum"):
        isoflop(sweeps(), within=1.1)
    with pytest.raises(UserError, match="must be above 1"):
        isoflop(sweeps(), within=0.5)
    assert CHINCHILLA.exponents.a > 0


def with_edge(runs: Runs, budget: int, sizes: int = 7) -> Runs:
    """Turn the losses of one budget round, so that its lowest is at an edge."""
    loss = runs.loss.copy()
    part = slice(budget * sizes, (budget + 1) * sizes)
    loss[part] = np.sort(loss[part])
    return dataclasses.replace(runs, loss=loss)


def test_bad_budgets_are_left_out_with_their_reasons() -> None:
    runs = with_edge(with_edge(sweeps(budgets=5), 1), 3)
    message = "2 of 5 budgets have no minimum: .*1e.19 .*edge.*; budget 1e.21 .*--skip_bad_budgets"
    with pytest.raises(UserError, match=message):
        isoflop(runs)
    found = isoflop(runs, skip_bad_budgets=True, draws=0)
    assert [f"{m.c:.0e}" for m in found.minima] == ["1e+18", "1e+20", "1e+22"]
    assert [(f"{bad.c:.0e}", bad.runs) for bad in found.skipped] == [("1e+19", 7), ("1e+21", 7)]
    assert all("edge of the sweep" in bad.reason for bad in found.skipped)
    kept = runs.take([i for i in range(35) if i // 7 not in (1, 3)])
    assert found.n_line == isoflop(kept, draws=0).n_line
    too_few = with_edge(runs, 0)
    with pytest.raises(UserError, match=r"2 FLOP budgets .* Left out: budget 1e.18 "):
        isoflop(too_few, skip_bad_budgets=True)
    with pytest.raises(UserError) as refused:
        isoflop(too_few)
    assert "--skip_bad_budgets" not in str(refused.value), "it would not help"


def test_budgets_are_chosen_by_their_flops() -> None:
    runs = with_edge(sweeps(budgets=5), 1)
    found = isoflop(runs, only=[1.05e22, 1e18, 1e20], draws=0)
    assert [f"{m.c:.0e}" for m in found.minima] == ["1e+18", "1e+20", "1e+22"]
    with pytest.raises(UserError, match=r"--budgets 5e\+18: no run .* 1e\+18, 1e\+19"):
        isoflop(runs, only=[5e18])


def test_groups_are_budgets_whatever_their_flops() -> None:
    runs = sweeps(budgets=4)
    shaken = dataclasses.replace(runs, c=runs.c * np.tile(np.geomspace(0.7, 1.4, 7), 4))
    with pytest.raises(UserError, match=r"no minimum: .*1 size"):
        isoflop(shaken, draws=0)
    named = dataclasses.replace(shaken, groups=tuple("dbca"[i // 7] for i in range(28)))
    assert [len(m.runs) for m in isoflop(named, draws=0).minima] == [7] * 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_runs_changes_no_bit(seed: int) -> None:
    runs = sweeps(sigma=0.001, seed=seed)
    found = isoflop(runs, draws=50)
    again = isoflop(runs.take(np.random.default_rng(seed).permutation(28).tolist()), draws=50)
    assert (again.n_line, again.d_line) == (found.n_line, found.d_line)
    assert np.array_equal(again.draws, found.draws)


def test_the_bias_of_parabolas_is_measured_on_the_law_of_the_runs() -> None:
    wide = isoflop(sweeps(published("hoffmann"), sizes=12, below=8, above=8), draws=0)
    message = bias_warning(wide)
    assert message is not None
    true = published("hoffmann").optimum(wide.minima[0].c).n
    assert f"{wide.minima[0].n / true - 1:+.1%} off" in message
    assert (
        bias_warning(isoflop(sweeps(published("hoffmann"), below=2.1, above=2.1), draws=0)) is None
    )
