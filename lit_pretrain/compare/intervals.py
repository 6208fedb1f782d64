"""Intervals of differences between runs that were measured on the same documents.

Documents are drawn anew with replacement (bootstrap), each with its losses under all runs, so that
what makes a document hard for every run cancels. The percentiles are those that lie as far out as a
t interval's ends (Hesterberg 2015, arXiv 1411.5279), or they would be too narrow for few documents.
There are too few seeds to draw from: of three drawn from three all are the same one in 1 of 9
draws, and the interval covers too little. So seeds enter by their variance, with the t quantile of
their degrees of freedom.

Axes: K seeds, N documents, R resamples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float32]

LEAST_UNITS = 8
"""Fewer documents give no interval: a bootstrap sees no tail in them."""
_BLOCK = 4_000_000
"""Numbers that are drawn at once."""


class Interval(NamedTuple):
    """A difference of means, with its 95 % interval."""

    value: float
    low: float | None
    """None where there are too few documents."""
    high: float | None

    @property
    def verdict(self) -> str:
        """Say in words what the interval allows to conclude."""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low == self.high == 0:
            return "the same"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "not told apart"


def resampled_counts(stratum_N: npt.NDArray[np.int64], resamples: int, seed: int) -> Counts:
    """Draw how much each document counts in each resample, (R, N).

    Each stratum is drawn by itself, because it is of the same size whatever documents it holds. Of
    n documents n - 1 are drawn, and count n / (n - 1) each: n of n would make the variance of small
    strata too small (Efron 1982, section 8.1). A stratum of one document stays as it is.

    Args:
        stratum_N: Source of each document.
        resamples: How many.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    counts_RN = np.ones((resamples, len(stratum_N)), dtype=np.float32)
    for stratum in np.unique(stratum_N):
        places = np.flatnonzero(stratum_N == stratum)
        n = len(places)
        step = max(1, _BLOCK // n)
        for begin in range(0, resamples if n > 1 else 0, step):
            drawn = generator.integers(0, n, size=(min(step, resamples - begin), n - 1))
            drawn += n * np.arange(len(drawn))[:, None]
            found = np.bincount(drawn.ravel(), minlength=len(drawn) * n).reshape(-1, n)
            counts_RN[begin : begin + len(drawn), places] = found * (n / (n - 1))
    return counts_RN


def paired_interval(
    one_KN: Array,
    other_KN: Array,
    weight_N: Array,
    counts_RN: Counts | None,
    *,
    matched: bool,
) -> Interval:
    """Estimate by how much the mean loss of one config exceeds that of another.

    Args:
        one_KN: Summed losses of each document under each seed of the one.
        other_KN: The same of the other, which may have another number of seeds.
        weight_N: What each document counts: its tokens or bytes.
        counts_RN: From `resampled_counts`; None for no interval.
        matched: Whether both have the same seeds in the same order, so that their differences are
            taken seed by seed.
    """
    total = weight_N.sum()
    difference_N = one_KN.mean(axis=0) - other_KN.mean(axis=0)
    value = float(difference_N.sum() / total)
    if counts_RN is None or np.count_nonzero(weight_N) < LEAST_UNITS:
        return Interval(value, None, None)
    sums_R2 = counts_RN.astype(np.float64) @ np.stack([difference_N, weight_N], axis=1)
    means_R = sums_R2[:, 0] / np.maximum(sums_R2[:, 1], np.finfo(float).tiny)
    seeds = _seed_variance(one_KN, other_KN, weight_N, matched=matched)
    if seeds is None:
        low, high = np.quantile(means_R, _percentiles(_effective(weight_N) - 1))
        return Interval(value, float(low), float(high))
    variance, freedom = seeds
    spread = float(means_R.var(ddof=1))
    whole = variance + spread
    # Satterthwaite: the documents are many, the seeds are few.
    many = _effective(weight_N) - 1
    at = many if variance == 0 else whole**2 / (variance**2 / freedom + spread**2 / many)
    half = _t_quantile(at) * math.sqrt(whole)
    return Interval(value, value - half, value + half)


def unpaired_half_width(one_KN: Array, other_KN: Array, weight_N: Array) -> float | None:
    """Compute the half width of the 95 % interval if both were measured on documents of their own.

    What pairing gains is the ratio to the half width of `paired_interval`.
    """
    n = np.count_nonzero(weight_N)
    if n < LEAST_UNITS:
        return None
    variances = []
    for loss_KN in (one_KN, other_KN):
        loss_N = loss_KN.mean(axis=0)
        residual_N = loss_N - loss_N.sum() / weight_N.sum() * weight_N
        variances.append(float((residual_N**2).sum()) / weight_N.sum() ** 2 * n / (n - 1))
    return _t_quantile(2.0 * n - 2) * math.sqrt(sum(variances))


def interval_over_seeds(loss_K: Array) -> tuple[float, float] | None:
    """Compute the 95 % interval of a mean loss over seeds; None for one seed."""
    if len(loss_K) < 2:
        return None
    half = _t_quantile(len(loss_K) - 1.0) * float(loss_K.std(ddof=1)) / math.sqrt(len(loss_K))
    return float(loss_K.mean()) - half, float(loss_K.mean()) + half


def _seed_variance(
    one_KN: Array, other_KN: Array, weight_N: Array, *, matched: bool
) -> tuple[float, float] | None:
    """Estimate the variance that seeds put on a difference, and its degrees of freedom.

    None where a config has one seed, so that nothing is known of it.
    """
    together = matched and len(one_KN) > 1
    groups = [one_KN - other_KN] if together else [one_KN, other_KN]
    if any(len(group) < 2 for group in groups):
        return None
    parts = [(_variance_of_seeds(group, weight_N), len(group) - 1.0) for group in groups]
    whole = float(sum(variance for variance, _ in parts))
    if whole == 0:
        return 0.0, sum(freedom for _, freedom in parts)
    return whole, whole**2 / sum(variance**2 / freedom for variance, freedom in parts)


def _variance_of_seeds(loss_KN: Array, weight_N: Array) -> float:
    """Estimate the variance of a mean over seeds, for documents that stay the same.

    The part of it that is of single documents under single seeds is taken out: the bootstrap over
    documents sees it already.
    """
    seeds, total = len(loss_KN), weight_N.sum()
    own_KN = loss_KN - loss_KN.mean(axis=0)
    own_K = own_KN.sum(axis=1) / total
    single_KN = own_KN - own_K[:, None] * weight_N
    n = np.count_nonzero(weight_N)
    single = float((single_KN**2).sum()) / total**2 * n / (n - 1)
    return float(max(0.0, float((own_K**2).sum()) - single) / (seeds * (seeds - 1)))


def _effective(weight_N: Array) -> float:
    """Count the documents as if all weighed the same (Kish): a long one makes the others few."""
    return float(weight_N.sum() ** 2 / (weight_N**2).sum())


def _percentiles(freedom: float) -> tuple[float, float]:
    from scipy.special import ndtr

    low = float(ndtr(-_t_quantile(freedom)))
    return low, 1 - low


def _t_quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), 0.975))
