"""Runs: completed from two of N, D and C, grouped by budget, and refused with the cause named."""

import math

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.runs import Record, assemble_runs, budgets, check_spread

from .synthetic import sweeps


def record(label: str = "r", **values: object) -> Record:
    return Record(**{"label": label, "losses": {"nats": 3.0}, "n": 1e8, "d": 2e9, **values})


def test_two_of_three_are_enough() -> None:
    runs = assemble_runs(
        [
            record("a"),
            record("b", d=None, c=1.2e18, n=2e8),
            record("c", n=None, c=1.2e18, d=1e9, losses={"nats": 3.2}),
        ],
        counts="matmul",
    )
    np.testing.assert_allclose(runs.n, [1e8, 2e8, 2e8])
    np.testing.assert_allclose(runs.d, [2e9, 1e9, 1e9])
    np.testing.assert_allclose(runs.c, [1.2e18, 1.2e18, 1.2e18])
    assert (runs.counts, runs.unit, len(runs)) == ("matmul", "nats", 3)
    assert runs.largest_compute == pytest.approx(1.2e18)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(losses={"nats": math.nan})], "loss .* is NaN; a run that diverged"),
        ([record(losses={"nats": -1.0})], "loss .* is -1; it must be positive"),
        ([record(losses={"nats": math.inf})], "inf; it must be positive and finite"),
        ([record(n=0.0)], "N .* is 0"),
        ([record(d=None)], "two of N .* are needed"),
        ([record(n=100.0, d=2.0, c=1.2e18)], "does not fit .* plain numbers"),
        ([record("x"), record("y")], "x and y are the same run"),
        (
            [record("x"), record("y", losses={"bits_per_byte": 1.0}, n=3e8)],
            "units are mixed: x .* nats .* y .* bits per byte only",
        ),
        (
            [record("x", vocabulary="aa"), record("y", vocabulary="bb", n=3e8)],
            "units are mixed: x .* different tokens",
        ),
        ([], "there are no runs"),
    ],
)
def test_refused(records: list[Record], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assemble_runs(records, counts="total")


def test_the_unit_is_one_that_all_runs_have() -> None:
    both = {"nats": 3.0, "bits_per_byte": 1.1}
    runs = [
        record("x", losses=both, vocabulary="aa"),
        record("y", losses={"bits_per_byte": 1.0}, n=3e8, vocabulary="bb"),
    ]
    assert assemble_runs(runs, counts="total").unit == "bits_per_byte"
    assert assemble_runs(runs[:1], counts="total").unit == "nats"
    with pytest.raises(UserError, match="y has no loss in nats per token"):
        assemble_runs(runs, counts="total", unit="nats")


def test_repeated_seeds_are_not_duplicates() -> None:
    assert (
        len(assemble_runs([record("x"), record("y", losses={"nats": 3.01})], counts="total")) == 2
    )


def test_budgets_do_not_chain() -> None:
    c = 1e18 * 1.06 ** np.arange(4)
    runs = assemble_runs(
        [record(str(i), n=1e8 * (4 - i), d=None, c=float(x)) for i, x in enumerate(c)],
        counts="total",
    )
    assert [group.labels for group in budgets(runs)] == [("1", "0"), ("3", "2")]


def test_spread() -> None:
    check_spread(sweeps())
    with pytest.raises(UserError, match="the runs have 2 FLOP budgets"):
        check_spread(sweeps(budgets=2))
    with pytest.raises(UserError, match=r"N spreads over a factor of [123]\.\d+ only"):
        check_spread(sweeps(apart=1.3, below=1.4, above=1.4))
