"""Forecast: what is asked of a law, its intervals, and where it becomes an extrapolation."""

import json
from pathlib import Path

import numpy as np
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.fitted import fit_document, fit_runs
from lit_pretrain.scaling.forecast import expected, forecast
from lit_pretrain.scaling.law import Law
from lit_pretrain.scaling.published import find_law
from lit_pretrain.scaling.published import published_law as published
from lit_pretrain.scaling.runs import Record, assemble_runs

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
        forecast(CHINCHILLA, largest_compute=1e22, **given)


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


# ------------------------------------------------------------------ a run that `fit` trains


COUNTS = count_parameters(ModelConfig(n_layer=12, width=768, n_head=12, vocab_size=32_000))
LAW = published("besiroglu")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law fitted to noisy runs of one tokenizer."""
    rng, records = np.random.default_rng(0), []
    for c in 10.0 ** np.arange(17, 20):
        for n in LAW.optimum(c).n * np.geomspace(1 / 4, 4, 7):
            loss = float(LAW.loss(n, c / 6 / n) * np.exp(rng.normal(0, 0.003)))
            records.append(Record(f"{c}_{n}", {"nats": loss}, n, c / 6 / n, vocabulary="aa"))
    path = tmp_path_factory.mktemp("laws") / "law.json"
    path.write_text(
        json.dumps(
            fit_document(
                fit_runs(assemble_runs(records, counts="nonembed"), draws=50), with_draws=True
            )
        )
    )
    return path


def test_a_law_of_one_s_own(kept: Path) -> None:
    found = expected(COUNTS, 1e10, given=str(kept), tokenizer="aa")
    assert found.n == COUNTS.non_embedding
    assert found.metric == "val/loss"
    assert found.end.loss == pytest.approx(float(LAW.loss(found.n, 1e10)), rel=0.02)
    assert (
        found.interval == found.end.run95
    )  # with the scatter of single runs, not of the law alone
    low, high = found.interval or (0, 0)
    values = found.values(1e10)
    assert values == {"forecast/loss": found.end.loss, "forecast/low": low, "forecast/high": high}
    assert found.values(1e9)["forecast/loss"] > values["forecast/loss"]
    assert found.text == f"{found.end.loss:.3f} ({low:.3f}–{high:.3f}) by law.json"
    assert expected(COUNTS, 1e12, given=str(kept)).text.endswith("× its largest run")


def test_nats_of_other_tokens_are_refused(kept: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer aa, this one has bb: .* --unit bits_per_byte"):
        expected(COUNTS, 1e10, given=str(kept), tokenizer="bb")


def test_published_laws_know_where_they_hold() -> None:
    found = expected(COUNTS, 1e10)
    assert (found.name, found.outside) == ("besiroglu", ())
    assert found.end.loss == pytest.approx(float(LAW.loss(COUNTS.total, 1e10)))
    assert found.interval == found.end.ci95
    assert expected(COUNTS, 1e6).outside == (
        "D 250.0 × below the smallest of the law's runs (2.5e+08)",
    )
    assert expected(COUNTS, 1e10, given="kaplan").interval is None
    assert expected(COUNTS, 1e10, given="kaplan").n == COUNTS.non_embedding
    with pytest.raises(UserError, match="no published law: besiroglu, "):
        expected(COUNTS, 1e10, given="besiroglo")


def test_a_plan_by_a_law_of_one_s_own(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_law(str(kept))
    assert (found.counts, found.unit, found.citation) == (
        "nonembed",
        "nats per token",
        "fitted to 21 runs of one's own",
    )
    assert found.outside(1e13, 1e10)[0].startswith("N ")
    shape = str(Path(__file__).parents[2] / "configs" / "model" / "llama_124m.yaml")
    assert (
        main(["plan", "--config", shape, "--max_tokens", "2.5e9", "--law", str(kept), "--json"])
        == 0
    )
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert loss["here"]["loss"] == pytest.approx(float(LAW.loss(loss["n"], 2.5e9)), rel=0.02)
    assert loss["here"]["ci95"][0] < loss["here"]["loss"] < loss["here"]["ci95"][1]
    assert loss["optimum"]["n_ci95"][0] < loss["optimum"]["n"] < loss["optimum"]["n_ci95"][1]
    assert find_law("kaplan") is published("kaplan")
