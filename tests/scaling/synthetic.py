"""Synthetic runs: sweeps at fixed budgets that follow a known law."""

import numpy as np

from lit_pretrain.scaling.law import Floats, Law
from lit_pretrain.scaling.published import published_law as published
from lit_pretrain.scaling.runs import Runs

CHINCHILLA = published("besiroglu")


def sweeps(
    law: Law = CHINCHILLA,
    *,
    budgets: int = 4,
    sizes: int = 7,
    low: float = 1e18,
    apart: float = 10.0,
    below: float = 4.0,
    above: float = 4.0,
    sigma: float = 0.0,
    seed: int = 0,
) -> Runs:
    """Sizes from N*/below to N* above at each budget, losses with log-normal noise."""
    c = np.repeat(low * apart ** np.arange(budgets), sizes)
    best = np.array([law.optimum(float(x)).n for x in c])
    n = best * np.tile(np.geomspace(1 / below, above, sizes), budgets)
    d = c / 6 / n
    noise: Floats = (
        np.random.default_rng(seed).normal(0, sigma, len(n)) if sigma else np.zeros(len(n))
    )
    labels = tuple(f"run {i}" for i in range(len(n)))
    return Runs(labels, n, d, c, law.loss(n, d) * np.exp(noise), None, "total", "nats")
