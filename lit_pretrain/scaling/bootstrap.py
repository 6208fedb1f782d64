"""Bootstrap intervals: how much a fitted law depends on the runs that it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import PARAMETERS, Floats, Law, from_coordinates
from lit_pretrain.scaling.regression import DELTA, Loss, fit

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
    for _ in range(draws):
        i = _resample(rng, len(n), len(PARAMETERS[law.form]) + 1)
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
