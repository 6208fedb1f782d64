"""A fitted law: its runs, bootstrap intervals of what was fitted, and the JSON file of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

import numpy as np
from numpy.typing import NDArray

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import load_json
from lit_pretrain.scaling.law import EXPONENTS, PARAMETERS, Floats, Form, Law, from_coordinates
from lit_pretrain.scaling.regression import DELTA, Fit, Loss, fit, run_order
from lit_pretrain.scaling.runs import Counts, Runs, Unit, check_spread

LEVEL = 0.95
"""Coverage of every interval that this package reports."""
_ATTEMPTS = 1000
"""Resamples to try before giving up on one with enough distinct runs."""


@dataclass(frozen=True)
class Draws:
    """Laws fitted to resamples of the runs."""

    laws: tuple[Law, ...]
    failed: int
    """Number of resamples whose fit gave no usable law, with a parameter that is not finite or not
    positive. `laws` leaves them out.
    """


def bootstrap(
    law: Law,
    n: Floats,
    d: Floats,
    loss: Floats,
    unique: Floats | None = None,
    *,
    draws: int,
    seed: int,
    kind: Loss = "huber",
    delta: float = DELTA,
) -> Draws:
    """Refit a law to resamples of its runs, drawn with replacement.

    Every refit starts from the law's own parameters. A resample with fewer distinct runs than
    determine the law is drawn again.

    Args:
        law: The law fitted to all runs.
        n: Parameters of every run.
        d: Training tokens of every run.
        loss: Final loss of every run.
        unique: Distinct training tokens of every run (data form).
        draws: Number of resamples.
        seed: Seed of the resampling.
        kind: Objective of the fit: Huber, or least absolute deviations.
        delta: Huber threshold of the fit, in ln L.
    """
    if draws < 2:
        raise UserError(
            f"bootstrap={draws}: at least 2 resamples make an interval, 0 none; 1000 are usual"
        )
    rng, laws, failed = np.random.default_rng(seed), [], 0
    order = run_order(n, d, loss, unique)
    for _ in range(draws):
        i = order[_resample(rng, len(n), len(PARAMETERS[law.form]) + 1)]
        found = fit(
            law.form,
            n[i],
            d[i],
            loss[i],
            None if unique is None else unique[i],
            kind=kind,
            delta=delta,
            start=law,
        ).law
        if usable(found):
            laws.append(found)
        else:
            failed += 1
    if len(laws) < 2:
        raise UserError(
            f"{failed} of {draws} resamples ended in no usable law: there are too few runs, or they"
            f" follow no {law.form} law"
        )
    return Draws(tuple(laws), failed)


def _resample(rng: np.random.Generator, size: int, distinct: int) -> NDArray[np.int64]:
    """Draw indices of `size` runs with replacement, at least `distinct` of them different."""
    for _ in range(_ATTEMPTS):
        i = rng.integers(size, size=size)
        if len(np.unique(i)) >= distinct:
            return i
    raise AssertionError(
        f"no resample of {size} runs with {distinct} distinct ones in {_ATTEMPTS} attempts"
    )


def usable(law: Law) -> bool:
    """Tell whether all parameters of a law are finite and positive."""
    return all(np.isfinite(value) and value > 0 for value in law.params.values())


def normal_draws(
    law: Law, coordinates: Floats, covariance: Sequence[Sequence[float]], *, draws: int, seed: int
) -> Draws:
    """Draw laws from the covariance of a law's coordinates, for a law without its runs."""
    points = np.random.default_rng(seed).multivariate_normal(
        coordinates, np.asarray(covariance), size=draws
    )
    laws = [from_coordinates(law.form, point) for point in points]
    return Draws(tuple(filter(usable, laws)), sum(not usable(found) for found in laws))


def interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval that holds the central `level` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def param_intervals(draws: Draws) -> dict[str, tuple[float, float]]:
    """Compute the 95 % interval of every parameter."""
    return {
        name: interval(np.array([law.params[name] for law in draws.laws]))
        for name in draws.laws[0].params
    }


def exponent_intervals(draws: Draws) -> dict[str, tuple[float, float]]:
    """Compute the 95 % intervals of the exponents a and b."""
    a = np.array([law.exponents.a for law in draws.laws])
    return {"a": interval(a), "b": interval(1 - a)}


@dataclass(frozen=True)
class Fitted:
    """A law with the runs that it was fitted to."""

    runs: Runs
    dropped: tuple[str, ...]
    """Labels of the runs that were left out for their high loss."""
    fit: Fit
    kind: Loss
    delta: float
    draws: Draws | None
    """Laws of the bootstrap resamples; None without a bootstrap."""
    seed: int


def fit_runs(
    runs: Runs,
    form: Form = "chinchilla",
    *,
    kind: Loss = "huber",
    delta: float = DELTA,
    drop_highest: int = 0,
    draws: int = 0,
    seed: int = 0,
) -> Fitted:
    """Fit a law to checked runs.

    Args:
        runs: At least three budgets and a factor of four in N.
        form: Form of the law.
        kind: Objective: Huber, or least absolute deviations.
        delta: Huber threshold, in ln L.
        drop_highest: Leave out the runs whose loss is among this many highest.
        draws: Number of bootstrap resamples; 0 for no intervals.
        seed: Seed of the bootstrap.

    Raises:
        UserError: The runs do not allow a law, or the law that they follow has an exponent that is
            not positive.
    """
    if not 0 <= drop_highest < len(runs):
        raise UserError(
            f"drop_highest={drop_highest} must lie between 0 and the number of runs less one,"
            f" {len(runs) - 1}"
        )
    dropped: tuple[str, ...] = ()
    if drop_highest:
        limit = np.sort(runs.loss)[-drop_highest]
        dropped = tuple(
            label for label, loss in zip(runs.labels, runs.loss, strict=True) if loss >= limit
        )
        runs = runs.take(np.flatnonzero(runs.loss < limit).tolist())
    check_spread(runs)
    if form == "data" and runs.unique is None:
        raise UserError(
            "--law data needs the unique tokens of every run: of a table a column (--columns"
            " unique=…); a run folder records them in its provenance.json (unique_tokens), but for"
            " runs that were made before that was so"
        )
    unique = runs.unique if form == "data" else None
    found = fit(form, runs.n, runs.d, runs.loss, unique, kind=kind, delta=delta)
    for name in PARAMETERS[form]:
        if name in EXPONENTS and found.law.params[name] <= 0:
            what = "N" if name in ("alpha", "alpha_N") else "D"
            raise UserError(
                f"the exponent {name} of the {form} law that fits best is"
                f" {found.law.params[name]:.4g}, not positive: the loss does not fall with {what}."
                " Look for runs that diverged or whose learning rate was not tuned"
            )
    resampled = (
        bootstrap(
            found.law,
            runs.n,
            runs.d,
            runs.loss,
            unique,
            draws=draws,
            seed=seed,
            kind=kind,
            delta=delta,
        )
        if draws
        else None
    )
    return Fitted(runs, dropped, found, kind, delta, resampled, seed)


def fit_warnings(fitted: Fitted) -> list[str]:
    """List the parameters that the runs leave open on one side, and what that means."""
    meaning = {
        "E": "the runs show no floor of the loss; larger runs may be forecast too well",
        "R_D": "the runs show no worth of a repeated token that lies between none and a new one's",
        "R_N": "the runs show no worth of a spare parameter that lies between none and any other's",
    }
    return [
        f"{name} = {fitted.fit.law.params[name]:.3g} is at the end of its range:"
        f" {meaning.get(name, 'the runs show no exponent within it')}"
        for name in fitted.fit.at_limit
    ]


class ResidualRecord(TypedDict):
    """A run of a fit, and how far its ln loss lies from the law."""

    run: str
    n: float
    d: float
    loss: float
    residual: float


class ExponentsRecord(TypedDict):
    """The exponents of the optimum (`Exponents`), with their intervals."""

    a: float
    b: float
    ci95: dict[str, tuple[float, float]] | None


class FitFields(TypedDict):
    """A fit, as `scaling fit` prints it."""

    law: Form
    params: dict[str, float]
    ci95: dict[str, tuple[float, float]] | None
    optimum: ExponentsRecord
    objective: float
    loss: Loss
    delta: float | None
    n_runs: int
    dropped: list[str]
    params_counted: Counts
    unit: Unit
    tokenizer: str | None
    range: dict[str, list[float]]
    largest_compute: float
    residual_rms: float
    bootstrap: dict[str, int] | None
    warnings: list[str]
    residuals: list[ResidualRecord]


class FitDocument(FitFields, total=False):
    """A fit, as `scaling fit --out` stores it, with what intervals of a forecast need."""

    draws: list[list[float]]
    """Parameters of the laws fitted to resamples, in the order of `PARAMETERS`."""


def fit_document(fitted: Fitted, *, with_draws: bool = False) -> FitDocument:
    """Describe a fit completely in plain JSON values."""
    runs, law, draws = fitted.runs, fitted.fit.law, fitted.draws
    exponents = exponent_intervals(draws) if draws is not None else None
    found: FitDocument = {
        "law": law.form,
        "params": dict(law.params),
        "ci95": param_intervals(draws) if draws is not None else None,
        "optimum": {"a": law.exponents.a, "b": law.exponents.b, "ci95": exponents},
        "objective": fitted.fit.objective,
        "loss": fitted.kind,
        "delta": fitted.delta if fitted.kind == "huber" else None,
        "n_runs": len(runs),
        "dropped": list(fitted.dropped),
        "params_counted": runs.counts,
        "unit": runs.unit,
        "tokenizer": runs.tokenizer,
        "range": {"n": _range(runs.n), "d": _range(runs.d), "loss": _range(runs.loss)},
        "largest_compute": runs.largest_compute,
        "residual_rms": float(np.sqrt((fitted.fit.residuals**2).mean())),
        "bootstrap": (
            {"resamples": len(draws.laws), "failed": draws.failed, "seed": fitted.seed}
            if draws is not None
            else None
        ),
        "warnings": fit_warnings(fitted),
        "residuals": [
            {"run": label, "n": float(n), "d": float(d), "loss": float(loss), "residual": float(r)}
            for label, n, d, loss, r in zip(
                runs.labels, runs.n, runs.d, runs.loss, fitted.fit.residuals, strict=True
            )
        ],
    }
    if with_draws and draws is not None:
        found["draws"] = [
            [drawn.params[name] for name in PARAMETERS[law.form]] for drawn in draws.laws
        ]
    return found


def _range(values: Floats) -> list[float]:
    return [float(values.min()), float(values.max())]


@dataclass(frozen=True)
class StoredFit:
    """The part of a fit that a forecast needs."""

    law: Law
    draws: Draws | None
    residuals: Floats
    largest_compute: float
    counts: Counts
    unit: str
    """One of `Unit`, or words for a published law."""
    tokenizer: str | None = None
    """Hash of the tokenizer that all runs share, where it is known."""
    parameters: tuple[float, float] = (0.0, np.inf)
    """Smallest and largest N among the runs, where they are known."""
    tokens: tuple[float, float] = (0.0, np.inf)
    """Fewest and most training tokens among them."""


def read_document(path: Path) -> StoredFit:
    """Read a fit that `scaling fit --out` has written.

    Raises:
        UserError: The file cannot be read or holds no fit.
    """
    try:
        found = load_json(path.read_text(encoding="utf-8"))
        form = cast(Form, found["law"])
        law = Law(form, found["params"])
        kept = StoredFit(
            law=law,
            draws=_read_draws(form, found["draws"]) if found.get("draws") else None,
            residuals=np.array([item["residual"] for item in found["residuals"]], dtype=float),
            largest_compute=float(found["largest_compute"]),
            counts=_one_of(get_args(Counts), found["params_counted"]),
            unit=_one_of(get_args(Unit), found["unit"]),
            parameters=_ends(found["range"]["n"]),
            tokens=_ends(found["range"]["d"]),
            tokenizer=found.get("tokenizer"),
        )
    except OSError as error:
        raise UserError(f"--fit {path} cannot be read: {error.strerror or error}") from None
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--fit {path} is no fit ({type(error).__name__}: {error}); make one with `scaling fit"
            " ... --out FILE`"
        ) from None
    return kept


def _one_of(known: Sequence[str], value: Any) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return value


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, values)
    return low, high


def _read_draws(form: Form, rows: Sequence[Sequence[float]]) -> Draws:
    laws = [Law(form, dict(zip(PARAMETERS[form], map(float, row), strict=True))) for row in rows]
    return Draws(tuple(laws), 0)
