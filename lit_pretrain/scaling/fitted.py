"""A fitted law: the runs, the law that they follow, its intervals, and the JSON file of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import load_json
from lit_pretrain.scaling.bootstrap import Draws, bootstrap, exponent_intervals, param_intervals
from lit_pretrain.scaling.law import EXPONENTS, PARAMETERS, Floats, Form, Law
from lit_pretrain.scaling.regression import DELTA, Fit, Loss, fit
from lit_pretrain.scaling.runs import Counts, Runs, Unit, check_spread


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


def fit_document(fitted: Fitted, *, with_draws: bool = False) -> dict[str, Any]:
    """Describe a fit completely in plain JSON values."""
    runs, law, draws = fitted.runs, fitted.fit.law, fitted.draws
    exponents = exponent_intervals(draws) if draws is not None else None
    found: dict[str, Any] = {
        "law": law.form,
        "params": dict(law.params),
        "ci95": param_intervals(draws) if draws is not None else None,
        "optimum": {**law.exponents._asdict(), "ci95": exponents},
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
