"""Forecast: the loss of a run that has not been made, with an interval and what that interval leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.bootstrap import Draws, interval
from lit_pretrain.scaling.law import FLOPS_PER_PARAMETER_TOKEN, Floats, Law

FAR = 10.0
"""Beyond this multiple of the largest fitted compute a forecast is shaded as extrapolation."""
MODEL_ERROR = (
    "the interval comes from resampling the runs: it omits the error of the law's form, and of a run that is trained or tuned differently. "
    "Forecasts of larger runs missed by up to 4 % on the Chinchilla data and by up to 9.5 % on Gadre et al.'s, whose intervals held 7 of 9"
)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Forecast:
    """One run to come."""

    n: float
    d: float
    c: float
    """6 N D."""
    loss: float
    ci95: Optional[Interval]
    """Of the law's value; None without resamples."""
    run95: Optional[Interval]
    """Of one run's loss: the law's value with the scatter of the fitted runs about it."""
    n_ci95: Optional[Interval]
    """Of N*, where N was asked of the law."""
    d_ci95: Optional[Interval]
    beyond: float
    """C as a multiple of the largest fitted compute."""

    @property
    def far(self) -> bool:
        """Whether this is more than ten times the largest fitted compute."""
        return self.beyond > FAR


def forecast(
    law: Law,
    *,
    n: Optional[float] = None,
    d: Optional[float] = None,
    flops: Optional[float] = None,
    unique: Optional[float] = None,
    largest_compute: float,
    draws: Optional[Draws] = None,
    residuals: Optional[Floats] = None,
    seed: int = 0,
) -> Forecast:
    """Forecast a run by N and D, by its FLOPs alone (then it is the compute-optimal one), or by its FLOPs and one of N and D.

    Args:
        law: What was fitted.
        n: Parameters.
        d: Training tokens.
        flops: 6 N D.
        unique: Distinct training tokens (data form).
        largest_compute: 6 N D of the largest fitted run.
        draws: Laws of resampled runs.
        residuals: ln L - ln L_predicted of the fitted runs, for the interval of one run.
        seed: Of the draws of residuals.

    Raises:
        UserError: N, D and FLOPs are too many, too few or not positive.
    """
    for name, value in (("n", n), ("d", d), ("flops", flops), ("unique", unique)):
        if value is not None and not 0 < value < np.inf:
            raise UserError(f"--{name} {value:g} must be positive and finite")
    if (n is None or d is None) and flops is None:
        raise UserError("say which run: --n and --d, or --flops, alone or with one of them")
    if n is not None and d is not None and flops is not None:
        raise UserError("--n, --d and --flops are one too many: FLOPs are 6 N D")
    optimal = n is None and d is None
    n, d = _complete(law, n, d, flops, unique)
    c = FLOPS_PER_PARAMETER_TOKEN * n * d
    ci95 = run95 = n_ci95 = d_ci95 = None
    if draws is not None:
        if optimal:
            splits = np.array([drawn.optimum(c, unique) for drawn in draws.laws])
            losses = np.array(
                [float(drawn.loss(best_n, best_d, unique)) for drawn, (best_n, best_d) in zip(draws.laws, splits, strict=True)]
            )
            n_ci95, d_ci95 = interval(splits[:, 0]), interval(splits[:, 1])
        else:
            losses = np.array([float(drawn.loss(n, d, unique)) for drawn in draws.laws])
        ci95 = interval(losses)
        if residuals is not None and len(residuals):
            noise = np.random.default_rng(seed).choice(residuals, size=(20, len(losses)))
            run95 = interval((losses * np.exp(noise)).ravel())
    return Forecast(n, d, c, float(law.loss(n, d, unique)), ci95, run95, n_ci95, d_ci95, c / largest_compute)


def _complete(law: Law, n: Optional[float], d: Optional[float], flops: Optional[float], unique: Optional[float]) -> tuple[float, float]:
    if flops is None:
        assert n is not None
        assert d is not None
        return n, d
    if n is not None:
        return n, flops / (FLOPS_PER_PARAMETER_TOKEN * n)
    if d is not None:
        return flops / (FLOPS_PER_PARAMETER_TOKEN * d), d
    return law.optimum(flops, unique)
