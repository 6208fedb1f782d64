"""Fit a law to runs by robust least squares on the logarithm of the loss.

Hoffmann et al. (2022) minimise the sum of Huber(ln L_predicted - ln L) with a threshold of 1e-3.
They and their replicators start L-BFGS from thousands of points, because it stops early on that
objective, and at once on its mean. Here Gauss-Newton steps with the analytic Jacobian reach the
same optimum in milliseconds. They start from variable projection: over a grid of the parameters in
which a law is not linear (exponents, and the decay of repeated data) linear least squares finds
the others, and the best points of the grid race each other.

Axes: R runs, P parameters of the law.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, linprog, nnls

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import (
    EXPONENTS,
    PARAMETERS,
    Floats,
    Form,
    Law,
    coordinates,
    effective_size,
    from_coordinates,
    jacobian,
    log_loss,
)

Loss = Literal["huber", "lad"]
DELTA = 1e-3
"""Hoffmann et al.'s threshold: larger residuals of ln L count linearly, not by their square."""
_QUICK, _EXACT = 1e-10, 1e-15
"""Relative tolerances.

The quick one is for resamples, whose noise is far larger; the exact one is for the reported fit.
"""
_RACE, _DATA_RACE = ((8, 10), (3, 40)), ((24, 10), (6, 40))
"""Rounds of (starts that enter, most evaluations of each); the two that lead then are refined.

Of a data law a third of the starts end in a valley where R_N has no effect.
"""
_HANDICAP = 1.25
"""Factor by which a law with a parameter of no effect must fit better than one without."""
_LEAST_SPREAD = 1e-7
"""Smallest singular value of the columns of the Jacobian, each of length 1, at which the runs
determine a law.
"""
_LEAST_SHARE = 1e-3
"""Smallest E that a fit looks at, as a share of the lowest loss: 0 has no logarithm."""
_EXPONENTS = (1e-3, 4.0)
"""Range of exponents: below it the loss hardly falls, above it only the smallest runs see the term.
"""
_DECAYS = (1e-2, 1e4)
"""Range of R_D and R_N. At its ends a repeated token is worth nothing, or as much as a new one."""
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
    at_limit: tuple[str, ...] = ()
    """Parameters that the runs push to the end of the range that a fit looks at."""


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
    order = run_order(n, d, loss, unique)
    # In units of the runs themselves, scales and exponents are no longer almost the same direction.
    n_unit, d_unit = np.exp(np.log(n[order]).mean()), np.exp(np.log(d[order]).mean())
    problem = _Problem(
        form,
        n[order] / n_unit,
        d[order] / d_unit,
        np.log(loss[order]),
        None if unique is None else unique[order] / d_unit,
    )
    with np.errstate(all="ignore"):  # trial points overflow, and the steps to them are rejected
        if start is not None:
            best = problem.within_limits(_to_search(form, coordinates(start), n_unit, d_unit))
            if kind == "huber":
                best = problem.huber(best, delta, _QUICK)
        else:
            best = _race(problem, delta)
        if kind == "lad":
            best = problem.absolute(best, _LAD_QUICK if start is not None else _EXACT)
        residuals = np.empty_like(problem.log_loss)
        residuals[order] = -problem.residuals(best)
        objective = (
            float(np.abs(problem.residuals(best)).sum())
            if kind == "lad"
            else problem.huber_objective(best, delta)
        )
        law = from_coordinates(form, _from_search(form, best, n_unit, d_unit))
    return Fit(law, objective, residuals, problem.at_limit(best))


def run_order(n: Floats, d: Floats, loss: Floats, unique: Floats | None) -> NDArray[np.int64]:
    """Order runs by their values, so that the order in which they are given decides nothing.

    Sums round differently in another order, which decides near-ties of starts; and a seed draws
    other resamples.
    """
    return np.lexsort((loss, np.zeros_like(n) if unique is None else unique, d, n))


# The search has coordinates of its own. N and D are counted in units of the runs' own size, so that
# scales and exponents are not almost the same direction; and a Kaplan law has alpha_N ln N_c and
# alpha_D ln D_c in place of ln N_c and ln D_c, which are huge for small exponents.


def _from_search(form: Form, x: Floats, n_unit: float = 1, d_unit: float = 1) -> Floats:
    """Turn coordinates of the search into those of the law."""
    log_n, log_d = np.log([n_unit, d_unit])
    if form == "kaplan":
        return np.array([x[0] / x[2] + log_n, x[1] / x[3] + log_d, x[2], x[3]])
    alpha, beta = x[3], x[3 if form == "tied" else 4]
    return np.array([x[0], x[1] + alpha * log_n, x[2] + beta * log_d, *x[3:]])


def _to_search(form: Form, theta: Floats, n_unit: float = 1, d_unit: float = 1) -> Floats:
    """Turn coordinates of the law into those of the search."""
    log_n, log_d = np.log([n_unit, d_unit])
    if form == "kaplan":
        p, q, alpha_n, alpha_d = theta
        return np.array([alpha_n * (p - log_n), alpha_d * (q - log_d), alpha_n, alpha_d])
    return 2 * theta - _from_search(form, theta, n_unit, d_unit)


@dataclass(frozen=True)
class _Problem:
    form: Form
    n: Floats
    d: Floats
    log_loss: Floats
    unique: Floats | None

    def residuals(self, x: Floats) -> Floats:
        theta = _from_search(self.form, x)
        return log_loss(self.form, theta, self.n, self.d, self.unique) - self.log_loss

    def jacobian(self, x: Floats) -> Floats:
        theta = _from_search(self.form, x)
        by = jacobian(self.form, theta, self.n, self.d, self.unique)
        if self.form != "kaplan":
            return by
        p, q, alpha_n, alpha_d = theta
        by_p, by_q = by[:, 0] / alpha_n, by[:, 1] / alpha_d
        return np.stack([by_p, by_q, by[:, 2] - p * by_p, by[:, 3] - q * by_q], axis=-1)

    @cached_property
    def limits(self) -> tuple[Floats, Floats]:
        """Return the lowest and the highest coordinates that a fit looks at."""
        low, high = np.full((2, len(PARAMETERS[self.form])), [[-np.inf], [np.inf]])
        for k, name in enumerate(PARAMETERS[self.form]):
            if name == "E":
                low[k] = self.log_loss.min() + np.log(_LEAST_SHARE)
            elif name in ("R_D", "R_N"):
                low[k], high[k] = np.log(_DECAYS)
            elif name in EXPONENTS:
                # A loss that rises with N or D must be found, so that the caller can refuse it.
                rising = self.form in ("chinchilla", "tied")
                low[k], high[k] = -1.0 if rising else _EXPONENTS[0], _EXPONENTS[1]
        return low, high

    def within_limits(self, theta: Floats) -> Floats:
        """Move a point into the limits, and off their ends, where no step begins."""
        low, high = self.limits
        return np.clip(theta, low + 1e-6, high - 1e-6)

    def at_limit(self, theta: Floats) -> tuple[str, ...]:
        """Name the parameters that lie within 1 % of an end of their range."""
        low, high = self.limits
        near = (theta < low + 0.01) | (theta > high - 0.01)
        return tuple(np.array(PARAMETERS[self.form])[near].tolist())

    def free(self, x: Floats) -> list[str]:
        """Name parameters that can change, together, without changing any loss."""
        names = [name for name in PARAMETERS[self.form] if name not in self.at_limit(x)]
        columns = self.jacobian(x)[:, [PARAMETERS[self.form].index(name) for name in names]]
        size = np.linalg.norm(columns, axis=0)
        seen = (size > 0) & np.isfinite(size)
        if not seen.all():
            return [name for name, has_effect in zip(names, seen, strict=True) if not has_effect]
        _, spread, directions = np.linalg.svd(columns / size, full_matrices=False)
        if spread[-1] >= _LEAST_SPREAD:
            return []
        share = np.abs(directions[-1])
        return [name for name, x in zip(names, share, strict=True) if x > 0.3 * share.max()]

    def huber(
        self, theta: Floats, delta: float, tolerance: float, evaluations: int = 500
    ) -> Floats:
        found = least_squares(
            lambda x: np.nan_to_num(self.residuals(x), nan=1e6, posinf=1e6, neginf=-1e6),
            theta,
            jac=lambda x: np.clip(np.nan_to_num(self.jacobian(x)), -1e30, 1e30),
            bounds=self.limits,
            loss="huber",
            f_scale=delta,
            x_scale="jac",
            xtol=tolerance,
            ftol=tolerance,
            gtol=tolerance,
            max_nfev=evaluations,
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
                point = np.clip(theta + length * step, *self.limits)
                trial = float(np.abs(self.residuals(point)).sum())
                if trial < value:
                    break
                length /= 2
            else:
                return theta
            theta, gain, value = point, value - trial, trial
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


def _race(problem: _Problem, delta: float) -> Floats:
    """Find the lowest optimum: of many starts, those that fall fastest go on.

    A data law also has valleys at infinity, where all runs repeat too much for R_N to matter, and
    steps into them do not lead out again: points in them carry a handicap.

    Raises:
        UserError: The runs leave some combination of parameters free, such as runs of equal length.
    """
    points = [problem.within_limits(x) for x in _starts(problem)]
    for entries, evaluations in _DATA_RACE if problem.form == "data" else _RACE:
        ended = [problem.huber(x, delta, _QUICK, evaluations) for x in points[:entries]]
        ended.sort(key=lambda x: problem.huber_objective(x, delta))
        # The lowest of all goes on wherever it lies, so that the end can compare.
        points = ended[:1] + sorted(ended[1:], key=lambda x: bool(problem.free(x)))
    points = [problem.huber(x, delta, _EXACT, 1500) for x in points[:2]]
    points.sort(
        key=lambda x: problem.huber_objective(x, delta) * (_HANDICAP if problem.free(x) else 1.0)
    )
    free = problem.free(points[0])
    if free:
        raise UserError(
            f"the runs do not determine a {problem.form} law: in the one that fits best"
            f" {' and '.join(free)} can change{' together' * (len(free) > 1)} without changing any"
            f" loss; {_CURES[problem.form]}"
        )
    return points[0]


def _starts(problem: _Problem) -> list[Floats]:
    """Find starts by variable projection, best first.

    At every point of a grid over the other parameters, non-negative least squares finds those in
    which the law is linear.
    """
    exponents = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    found = []
    if problem.form == "kaplan":
        for alpha_d in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            for ratio in (0.1, 0.3, 0.6, 1.0, 1.6, 3.0, 8.0):
                found.append(_project_kaplan(problem, ratio, alpha_d))
    elif problem.form == "data":
        some, decays = (0.2, 0.35, 0.5, 0.7), (1.5, 6.0, 25.0)
        for point in product(some, some, decays, decays, (-3.0, -1.5, 0.0, 1.5, 3.0)):
            found.append(_project_data(problem, *point))
    else:
        for alpha, beta in product((-0.1, *exponents), repeat=2):
            if problem.form == "chinchilla" or alpha == beta:
                scales, error = _project(problem, problem.n, problem.d, alpha, beta)
                ends = [alpha, beta] if problem.form == "chinchilla" else [alpha]
                found.append((error, np.array([*scales, *ends])))
    found.sort(key=lambda item: item[0])
    return [theta for _, theta in found]


def _project(
    problem: _Problem, n: Floats, d: Floats, alpha: float, beta: float
) -> tuple[Floats, float]:
    """Find ln E, ln A and ln B at given exponents, and the sum of relative errors."""
    columns = np.stack([np.ones_like(n), n**-alpha, d**-beta], axis=-1)
    scale = columns.max(axis=0)
    # The objective is one of relative errors, so divide by the loss.
    relative = columns / scale / np.exp(problem.log_loss)[:, None]
    weights, _ = nnls(relative, np.ones(len(n)))
    error = float(np.abs(relative @ weights - 1).sum())
    return np.log(np.maximum(weights, 1e-3 * np.exp(problem.log_loss.min())) / scale), error


def _project_data(
    problem: _Problem, alpha: float, beta: float, r_d: float, r_n: float, log_useful: float
) -> tuple[float, Floats]:
    """Project a law of repeated data, given also the ln N that one unit of unique tokens can feed.

    Effective N and D follow from it, and with alpha and beta it fixes the ratio of A to B.
    """
    a_less_b = alpha * log_useful - np.log(alpha / beta)
    theta = np.array([0.0, a_less_b, 0.0, alpha, beta, np.log(r_d), np.log(r_n)])
    n, d = effective_size(theta, problem.n, problem.d, problem.unique)
    columns = np.stack([np.ones_like(n), np.exp(a_less_b) * n**-alpha + d**-beta], axis=-1)
    relative = columns / np.exp(problem.log_loss)[:, None]
    weights, _ = nnls(relative, np.ones(len(n)))
    e, b = np.log(np.maximum(weights, 1e-3 * np.exp(problem.log_loss.min())))
    theta[:3] = e, a_less_b + b, b
    return float(np.abs(relative @ weights - 1).sum()), theta


def _project_kaplan(problem: _Problem, ratio: float, alpha_d: float) -> tuple[float, Floats]:
    """Project Kaplan's law: L^(1 / alpha_D) is linear in N_c^ratio and D_c."""
    columns = np.stack([problem.n**-ratio, 1 / problem.d], axis=-1)
    scale = columns.max(axis=0)
    level = problem.log_loss.mean()
    power = np.exp((problem.log_loss - level) / alpha_d)
    weights, _ = nnls(columns / scale / power[:, None], np.ones(len(power)))
    logs = alpha_d * np.log(np.maximum(weights, 1e-3) / scale) + level
    x = np.array([*logs, ratio * alpha_d, alpha_d])
    return float(np.abs(problem.residuals(x)).sum()), x


_CURES: dict[Form, str] = {
    "chinchilla": "vary N and D independently (several sizes at each of several budgets), or fit a"
    " form with fewer parameters",
    "data": "R_D needs runs that repeat data, R_N runs with more parameters than their unique data"
    " can feed, and the rest several sizes at each of several budgets",
}
_CURES |= dict.fromkeys(("tied", "kaplan"), _CURES["chinchilla"].partition(", or")[0])
