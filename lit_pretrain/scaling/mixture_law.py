"""The best mixture of sources, from the losses of small runs over the simplex of mixtures.

The loss of each target j follows yⱼ(w) = exp(cⱼ) + exp(tⱼ·w), where w are the shares of the m
sources: a floor, and a part that each source multiplies (the form of Ye et al. 2024, Data Mixing
Laws, arXiv:2403.16952, and of Olmix). The best mixture minimises Σ aⱼ yⱼ(w) + κ KL(w | natural)
within caps. The sum is convex, so that there is one.

A legend of axes: N runs, M sources, P terms of a design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64]
STEPS = 1000
"""Shares are whole thousandths: names, configs and reports show them exactly."""
LEAST_RUNS = 16
RUNS_PER_SOURCE = 4
_CANDIDATES = 2000
_CONCENTRATION = (0.1, 5.0)
"""Ends of the factor on the natural shares that a candidate is drawn around (log-uniform): from the
corners of the simplex to the neighbourhood of the natural mixture.
"""
_RIDGE = 1e-3
_APART = (0.3, 0.2, 0.1, 0.05, 0.0)
"""How far apart mixtures shall lie: the first of these at which there are enough of them."""
_FLOORS = (0.02, 0.3, 0.6, 0.8, 0.9, 0.96, 0.99)
"""Floors to start a fit from, as shares of the least loss."""
_PULL = 3e-4
"""Weight of a slope's distance from the middle: ten units of it weigh as much as the noise of a run
(0.3 %).
"""
_RESAMPLES = 100
_LEAST_SHARE = 1e-9


def round_shares(weights_M: Floats) -> Floats:
    """Round shares to whole thousandths that sum to 1 (largest remainders)."""
    scaled = weights_M / weights_M.sum() * STEPS
    whole = np.floor(scaled + 1e-9)
    missing = round(STEPS - whole.sum())
    whole[np.argsort(whole - scaled, kind="stable")[:missing]] += 1
    rounded: Floats = whole / STEPS
    return rounded


def within_caps(weights_M: Floats, caps_M: Floats) -> Floats:
    """Cut shares at their caps, and give what is cut off to the others in proportion.

    The caps sum to 1 or more.
    """
    weights = weights_M / weights_M.sum()
    full = np.zeros(len(weights), dtype=bool)
    for _ in range(len(weights)):
        over = ~full & (weights > caps_M)
        if not over.any():
            break
        full |= over
        weights = np.where(full, caps_M, weights)
        left = 1 - weights[full].sum()
        rest = weights[~full].sum()
        # Others that have nothing share what is left by their caps.
        weights[~full] = (
            weights[~full] * left / rest if rest > 0 else caps_M[~full] * left / caps_M[~full].sum()
        )
    cut: Floats = np.minimum(weights, caps_M)
    return cut


def design_mixtures(natural_M: Floats, caps_M: Floats, runs: int, seed: int) -> Floats:
    """Choose mixtures that together say most about a law of second order, [runs, M].

    Candidates are drawn from Dirichlet distributions around the natural mixture, from near it to
    the corners, and cut at the caps. One after the other, that candidate is taken which raises the
    determinant of the design most (D-optimal; terms wᵢ and wᵢwⱼ) and differs enough from those
    taken: left to itself, such a design repeats corners and middles of edges, which cannot show
    whether the law holds between them.

    Args:
        natural_M: Shares of the natural mixture.
        caps_M: Largest share of each source.
        runs: How many to choose.
        seed: Of the candidates.
    """
    rng = np.random.default_rng(seed)
    low, high = np.log(_CONCENTRATION)
    sources = len(natural_M)
    factors = np.exp(rng.uniform(low, high, _CANDIDATES)) * sources
    drawn = [rng.dirichlet(np.maximum(factor * natural_M, 1e-3)) for factor in factors]
    found = [round_shares(within_caps(each, caps_M)) for each in drawn]
    candidates = np.unique(
        np.array([each for each in found if (each <= caps_M + 1 / STEPS).all()]), axis=0
    )
    first, second = np.triu_indices(sources, 1)
    terms_CP = np.concatenate([candidates, candidates[:, first] * candidates[:, second]], axis=1)
    chosen: list[int] = []
    for apart in _APART:
        chosen = _most_telling(candidates, terms_CP, runs, apart)
        if len(chosen) == runs:
            break
    return candidates[chosen]


def _most_telling(candidates: Floats, terms_CP: Floats, runs: int, apart: float) -> list[int]:
    """Choose candidates one after the other by the determinant that they add.

    Args:
        candidates: Mixtures, [C, M].
        terms_CP: Terms of the design.
        runs: How many to choose; there may be fewer.
        apart: Least sum of the differences of shares between two of them.
    """
    # Sums, not products of matrices: BLAS adds in another order for each number of threads, and a
    # resumed run must find the same mixtures.
    inverse_PP = np.eye(terms_CP.shape[1]) / _RIDGE
    gains_C = (terms_CP**2).sum(axis=1) / _RIDGE
    chosen: list[int] = []
    while len(chosen) < runs and not np.isneginf(gains_C).all():
        best = int(np.argmax(gains_C))
        chosen.append(best)
        direction_P = (inverse_PP * terms_CP[best]).sum(axis=1)
        scale = 1 + float((direction_P * terms_CP[best]).sum())
        inverse_PP -= np.multiply.outer(direction_P, direction_P) / scale
        gains_C = gains_C - (terms_CP * direction_P).sum(axis=1) ** 2 / scale
        gains_C[np.abs(candidates - candidates[best]).sum(axis=1) <= apart] = -np.inf
    return chosen


@dataclass(frozen=True)
class MixtureLaw:
    """The loss of one target as a function of the mixture."""

    c: float
    """Logarithm of the floor."""
    t_M: Floats

    def loss(self, weights: Floats) -> Floats:
        """Predict the loss of mixtures, [..., M] -> [...]."""
        found: Floats = np.exp(self.c) + np.exp((weights * self.t_M).sum(axis=-1))
        return found

    def gradient(self, weights_M: Floats) -> Floats:
        """Return the derivative of the loss by each share, [M]."""
        slope: Floats = np.exp((weights_M * self.t_M).sum()) * self.t_M
        return slope


def fit_mixture_law(
    weights_NM: Floats, losses_N: Floats, start: MixtureLaw | None = None
) -> MixtureLaw:
    """Fit the law to runs by least squares of the logarithms.

    What the runs leave open, such as all slopes where no mixture matters, a weak pull towards a
    moderate loss decides.

    Args:
        weights_NM: Shares of each run.
        losses_N: Its loss, above 0.
        start: Where to begin; None tries several floors.
    """
    wanted_N, least = np.log(losses_N), float(losses_N.min())
    centre = np.log(0.3 * least)
    pull_MP = _PULL * np.eye(weights_NM.shape[1], weights_NM.shape[1] + 1, 1)

    def residuals(point: Floats) -> Floats:
        logs_N = np.log(np.exp(point[0]) + np.exp(weights_NM @ point[1:]))
        return np.append(logs_N - wanted_N, _PULL * (point[1:] - centre))

    def jacobian(point: Floats) -> Floats:
        floor, rest_N = np.exp(point[0]), np.exp(weights_NM @ point[1:])
        slopes_NM = rest_N[:, None] * weights_NM
        ours = np.column_stack([np.full(len(rest_N), floor), slopes_NM])
        return np.concatenate([ours / (floor + rest_N)[:, None], pull_MP])

    points = []
    if start is not None:
        points.append(np.append(start.c, start.t_M))
    else:
        for share in _FLOORS:
            rest_N = np.log(losses_N - share * least)
            slopes_M = np.linalg.lstsq(weights_NM, rest_N, rcond=None)[0]
            points.append(np.append(np.log(share * least), slopes_M))
    low = np.append(np.log(1e-3 * least), np.full(weights_NM.shape[1], -60.0))
    high = np.append(np.log(least), np.full(weights_NM.shape[1], 60.0))
    fits = [
        optimize.least_squares(
            residuals,
            np.clip(point, low + 1e-9, high - 1e-9),
            jacobian,
            bounds=(low, high),
            max_nfev=100,
            ftol=1e-7,
            xtol=1e-6,
        )
        for point in points
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    return MixtureLaw(float(best.x[0]), np.array(best.x[1:]))


def best_mixture(
    laws: Sequence[MixtureLaw],
    targets: Sequence[float],
    natural_M: Floats,
    caps_M: Floats,
    kl: float,
) -> Floats:
    """Minimise Σ aⱼ yⱼ(w) + κ KL(w | natural) over mixtures within the caps.

    Args:
        laws: Law of each target.
        targets: Weight aⱼ of each.
        natural_M: Shares of the natural mixture, all above 0.
        caps_M: Largest share of each source; they sum to 1 or more.
        kl: κ.
    """

    def objective(weights_M: Floats) -> tuple[float, Floats]:
        ratio_M = np.log(np.maximum(weights_M, _LEAST_SHARE) / natural_M)
        value = kl * float((weights_M * ratio_M).sum())
        slope_M = kl * (ratio_M + 1)
        for weight, law in zip(targets, laws, strict=True):
            value += weight * float(law.loss(weights_M))
            slope_M = slope_M + weight * law.gradient(weights_M)
        return value, slope_M

    found = optimize.minimize(
        objective,
        within_caps(natural_M, caps_M),
        jac=True,
        method="SLSQP",
        bounds=[(_LEAST_SHARE, max(_LEAST_SHARE, cap)) for cap in caps_M],
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return within_caps(np.maximum(found.x, 0), caps_M)


@dataclass(frozen=True)
class MixtureFit:
    """What the runs say about the best mixture."""

    laws: tuple[MixtureLaw, ...]
    """By target."""
    best_M: Floats
    """Whole thousandths."""
    interval_2M: Floats
    """95 % of each share, by resampling residuals."""
    gain: float
    """Predicted loss of the natural mixture minus that of the best."""
    gain_interval: tuple[float, float]
    """95 %."""
    rank_correlation: tuple[float, ...]
    """By target, of the losses with those predicted from all other runs (Spearman)."""
    error: tuple[float, ...]
    """By target, root mean square of the relative errors of these predictions."""


def fit_mixture(
    weights_NM: Floats,
    losses_NJ: Floats,
    targets: Sequence[float],
    natural_M: Floats,
    caps_M: Floats,
    *,
    kl: float,
    seed: int = 0,
) -> MixtureFit:
    """Find the best mixture, with intervals and with the law's errors on runs left out.

    Args:
        weights_NM: Shares of each run.
        losses_NJ: Its loss on each target.
        targets: Weight of each target.
        natural_M: Shares of the natural mixture.
        caps_M: Largest share of each source.
        kl: Weight of the distance from the natural mixture.
        seed: Of the resampling.
    """
    runs, columns = len(weights_NM), range(losses_NJ.shape[1])
    laws = [fit_mixture_law(weights_NM, losses_NJ[:, j]) for j in columns]
    best_M = best_mixture(laws, targets, natural_M, caps_M, kl)
    rank, error = [], []
    for j in columns:
        left_out = [
            fit_mixture_law(
                np.delete(weights_NM, n, 0), np.delete(losses_NJ[:, j], n), laws[j]
            ).loss(weights_NM[n])
            for n in range(runs)
        ]
        relative = np.array(left_out) / losses_NJ[:, j] - 1
        rank.append(float(stats.spearmanr(left_out, losses_NJ[:, j]).statistic))
        error.append(float(np.sqrt((relative**2).mean())))
    rng = np.random.default_rng(seed)
    freedom = max(1, runs - weights_NM.shape[1] - 1)
    predicted = [law.loss(weights_NM) for law in laws]
    residuals = [np.log(losses_NJ[:, j] / predicted[j]) * np.sqrt(runs / freedom) for j in columns]
    shares, gains = [], []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(runs, size=runs)
        again = [
            fit_mixture_law(weights_NM, predicted[j] * np.exp(residuals[j][drawn]), laws[j])
            for j in columns
        ]
        shares.append(best_mixture(again, targets, natural_M, caps_M, kl))
        gains.append(_gain(again, targets, natural_M, best_M))
    low, high = np.quantile(gains, [0.025, 0.975])
    return MixtureFit(
        laws=tuple(laws),
        best_M=round_shares(best_M),
        interval_2M=np.quantile(shares, [0.025, 0.975], axis=0),
        gain=_gain(laws, targets, natural_M, best_M),
        gain_interval=(float(low), float(high)),
        rank_correlation=tuple(rank),
        error=tuple(error),
    )


def _gain(
    laws: Sequence[MixtureLaw], targets: Sequence[float], natural_M: Floats, best_M: Floats
) -> float:
    return sum(
        weight * float(law.loss(natural_M) - law.loss(best_M))
        for weight, law in zip(targets, laws, strict=True)
    )
