"""Bootstrap: how much a fitted law depends on which runs happened to be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from numpy.typing import NDArray

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import PARAMETERS, Floats, Law, from_coordinates
from lit_pretrain.scaling.regression import DELTA, Loss, fit

LEVEL = 0.95
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Draws:
    """Laws of resampled runs."""

    laws: tuple[Law, ...]
    failed: int
    """Resamples whose fit did not end in a usable law: not finite, or an exponent that is not
    positive. They are left out of the laws.
    """


def bootstrap(
    law: Law,
    n: Floats,
    d: Floats,
    loss: Floats,
    unique: Optional[Floats] = None,
    *,
    draws: int,
    seed: int,
    kind: Loss = "huber",
    delta: float = DELTA,
) -> Draws:
    """Fit the form of a law again to resamples of its runs, with replacement, each from the law's
    own parameters.

    Resamples with fewer distinct runs than would determine the law are drawn again.

    Args:
        law: The fit of all runs.
        n: Parameters of every run.
        d: Training tokens.
        loss: Final losses.
        unique: Distinct training tokens (data form).
        draws: How many resamples.
        seed: Of the resampling.
        kind: As for the fit.
        delta: As for the fit.
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
    for _ in range(_ATTEMPTS):
        i = rng.integers(size, size=size)
        if len(np.unique(i)) >= distinct:
            return i
    raise AssertionError(
        f"no resample of {size} runs with {distinct} distinct ones in {_ATTEMPTS} attempts"
    )


def usable(law: Law) -> bool:
    """Whether all parameters are finite and positive."""
    return all(np.isfinite(value) and value > 0 for value in law.params.values())


def normal_draws(
    law: Law, coordinates: Floats, covariance: Sequence[Sequence[float]], *, draws: int, seed: int
) -> Draws:
    """Draws of a law whose runs are not at hand, from the covariance of its coordinates."""
    points = np.random.default_rng(seed).multivariate_normal(
        coordinates, np.asarray(covariance), size=draws
    )
    laws = [from_coordinates(law.form, point) for point in points]
    return Draws(tuple(filter(usable, laws)), sum(not usable(found) for found in laws))


def interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The central share of values: a percentile interval."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def param_intervals(draws: Draws) -> dict[str, tuple[float, float]]:
    """95 % interval of every parameter."""
    return {
        name: interval(np.array([law.params[name] for law in draws.laws]))
        for name in draws.laws[0].params
    }


def exponent_intervals(draws: Draws) -> dict[str, tuple[float, float]]:
    """95 % intervals of a and b."""
    a = np.array([law.exponents.a for law in draws.laws])
    return {"a": interval(a), "b": interval(1 - a)}
