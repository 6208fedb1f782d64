"""Fit a law to runs by robust least squares on the logarithm of the loss.

Hoffmann et al. (2022) minimise the sum of Huber(ln L_predicted - ln L) with a threshold of 1e-3.
They and their replicators start L-BFGS from thousands of points, because it stops early on that
objective, and at once on its mean. Here Gauss-Newton steps with the analytic Jacobian reach the
same optimum in milliseconds from starts that linear least squares provides.

Axes: R runs, P parameters of the law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import least_squares, linprog, nnls

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import (
    PARAMETERS,
    Floats,
    Form,
    Law,
    coordinates,
    from_coordinates,
    jacobian,
    log_loss,
)

Loss = Literal["huber", "lad"]
DELTA = 1e-3
"""Hoffmann et al.'s threshold: larger residuals of ln L count linearly, not by their square."""
_QUICK, _EXACT = 1e-10, 1e-15
"""Relative tolerances.

The quick one serves to compare starts, and for resamples, whose noise is far larger; the exact one
is for the reported fit.
"""
_LAD_STEPS, _LAD_QUICK = 100, 1e-7
"""Most steps of a least-absolute-deviations fit, and its tolerance for resamples."""


@dataclass(frozen=True)
class Fit:
    """A fitted law: the one with the lowest objective."""

    law: Law
    objective: float
    """Sum of Huber(r) or of |r| over runs, r = ln L - ln L_predicted."""
    residuals: Floats
    """r of every run, in the order of the runs."""


def fit(
    form: Form,
    n: Floats,
    d: Floats,
    loss: Floats,
    unique: Floats | None = None,
    *,
    kind: Loss = "huber",
    delta: float = DELTA,
    start: Law | None = None,
) -> Fit:
    """Fit a law to runs.

    Args:
        form: Form of the law.
        n: Parameters of every run.
        d: Training tokens of every run.
        loss: Final losses, all in one unit.
        unique: Distinct training tokens of every run (data form).
        kind: Objective: Huber, or least absolute deviations.
        delta: Huber threshold, in ln L.
        start: Law to start from, such as the fit of all runs for a resample; None for several
            starts from linear least squares.

    Raises:
        UserError: The runs do not determine the law.
    """
    wanted = len(PARAMETERS[form])
    if len(n) <= wanted:
        raise UserError(
            f"{len(n)} runs cannot determine the {wanted} parameters of a {form} law; give at least"
            f" {wanted + 1}"
        )
    if not 0 < delta < np.inf:
        raise UserError(f"delta={delta} must be positive: it is the Huber threshold, in ln L")
    problem = _Problem(form, n, d, np.log(loss), unique)
    if start is not None:
        best = (
            coordinates(start)
            if kind == "lad"
            else problem.huber(coordinates(start), delta, _QUICK)
        )
    else:
        tried = [problem.huber(theta, delta, _QUICK) for theta in _starts(form, n, d, loss)]
        best = problem.huber(
            min(tried, key=lambda theta: problem.huber_objective(theta, delta)), delta, _EXACT
        )
        _check_determined(problem, best)
    if kind == "lad":
        best = problem.absolute(best, _LAD_QUICK if start is not None else _EXACT)
    residuals = -problem.residuals(best)
    objective = (
        float(np.abs(residuals).sum()) if kind == "lad" else problem.huber_objective(best, delta)
    )
    return Fit(from_coordinates(form, best), objective, residuals)


@dataclass(frozen=True)
class _Problem:
    form: Form
    n: Floats
    d: Floats
    log_loss: Floats
    unique: Floats | None

    def residuals(self, theta: Floats) -> Floats:
        return log_loss(self.form, theta, self.n, self.d, self.unique) - self.log_loss

    def jacobian(self, theta: Floats) -> Floats:
        return jacobian(self.form, theta, self.n, self.d, self.unique)

    def huber(self, theta: Floats, delta: float, tolerance: float) -> Floats:
        with np.errstate(all="ignore"):  # least_squares rejects a trial step that overflows
            found = least_squares(
                lambda x: np.nan_to_num(self.residuals(x), nan=1e6, posinf=1e6, neginf=-1e6),
                theta,
                jac=lambda x: np.nan_to_num(self.jacobian(x)),
                loss="huber",
                f_scale=delta,
                x_scale="jac",
                xtol=tolerance,
                ftol=tolerance,
                gtol=tolerance,
                max_nfev=500,
            )
        return np.asarray(found.x, float)

    def huber_objective(self, theta: Floats, delta: float) -> float:
        r = np.abs(self.residuals(theta))
        value = float(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum())
        return value if np.isfinite(value) else np.inf

    def absolute(self, theta: Floats, tolerance: float) -> Floats:
        """Minimise the absolute deviations with Gauss-Newton steps (Osborne & Watson 1971).

        Each step is a linear programme, shortened until the sum falls.
        """
        value = float(np.abs(self.residuals(theta)).sum())
        for _ in range(_LAD_STEPS):
            step = _lad_step(self.jacobian(theta), self.residuals(theta))
            length = 1.0
            while length > 1e-9:
                with np.errstate(all="ignore"):
                    trial = float(np.abs(self.residuals(theta + length * step)).sum())
                if trial < value:
                    break
                length /= 2
            else:
                return theta
            theta, gain, value = theta + length * step, value - trial, trial
            if gain <= tolerance * value:
                return theta
        return theta


def _lad_step(jacobian_RP: Floats, residuals_R: Floats) -> Floats:
    """Find the step that minimises sum |r + J step|.

    The dual problem gives it: maximise r y over |y| <= 1 with J^T y = 0.
    """
    scale = np.linalg.norm(jacobian_RP, axis=0)
    found = linprog(
        -residuals_R,
        A_eq=(jacobian_RP / scale).T,
        b_eq=np.zeros(len(scale)),
        bounds=(-1, 1),
        method="highs",
    )
    assert found.status == 0, found.message  # y = 0 is feasible and the box is bounded
    step: Floats = np.asarray(found.eqlin.marginals, float) / scale
    return step


def _starts(form: Form, n: Floats, d: Floats, loss: Floats) -> list[Floats]:
    """Find a few starts for a fit.

    For given exponents the law is linear in E, A and B: non-negative least squares finds them.
    """
    found = []
    exponents = [0.15, 0.3, 0.5, 0.8]
    if form in ("chinchilla", "tied"):
        # A loss that rises with N or D must be found, so that the caller can refuse it.
        exponents.append(-0.1)
    for alpha in exponents:
        for beta in (alpha,) if form in ("tied", "kaplan") else exponents:
            columns = np.stack([np.ones_like(n), n**-alpha, d**-beta], axis=-1)
            scale = columns.max(axis=0)
            # The objective is one of relative errors, so divide by the loss.
            weights, _ = nnls(columns / scale / loss[:, None], np.ones_like(loss))
            found.append(
                (
                    float(np.abs(columns / scale @ weights / loss - 1).sum()),
                    alpha,
                    beta,
                    weights / scale,
                )
            )
    found.sort(key=lambda item: item[0])
    starts = []
    for _, alpha, beta, (e, a, b) in found[:3]:
        floor = 1e-3 * loss.min()
        logs = np.log(
            [max(e, floor), max(a, floor * n.min() ** alpha), max(b, floor * d.min() ** beta)]
        )
        ends = {
            "chinchilla": [alpha, beta],
            "tied": [alpha],
            "data": [alpha, beta, np.log(10.0), np.log(5.0)],
            "kaplan": [],
        }[form]
        starts.append(np.array([*logs, *ends]))
    if form == "kaplan":
        middle = float(np.log(np.median(loss)))
        return [
            np.array([np.log(n.max()) + middle / x, np.log(d.max()) + middle / x, x, x])
            for x in (0.05, 0.1, 0.2, 0.4)
        ]
    return starts


def _check_determined(problem: _Problem, theta: Floats) -> None:
    """Refuse runs that leave some combination of parameters free, such as runs of equal length."""
    columns = problem.jacobian(theta)
    size = np.linalg.norm(columns, axis=0)
    if (
        not np.isfinite(columns).all()
        or not size.all()
        or np.linalg.svd(columns / np.where(size, size, 1), compute_uv=False)[-1] < 1e-7
    ):
        raise UserError(
            f"the runs do not determine a {problem.form} law: some of its parameters can change"
            " without changing any loss; vary N and D independently (several sizes at each of"
            " several budgets), or fit a form with fewer parameters"
        )
