"""Inference-aware optimum: the size that costs least to train and then to serve, at the loss of a given run."""

from __future__ import annotations

import math
from typing import NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import Law

TRAINING = 6.0
SERVING = 2.0
"""FLOPs per parameter and token: forward and backward, and forward alone."""


class LifetimeOptimum(NamedTuple):
    """The cheapest model of a quality."""

    n: float
    d: float
    """Training tokens that bring it to the loss."""
    flops: float
    """Training and serving."""
    saved: float
    """FLOPs less than those of the given run."""

    @property
    def share(self) -> float:
        """Saved share of what the given run costs in its life."""
        return self.saved / (self.flops + self.saved)


def lifetime_flops(n: float, d: float, served: float) -> float:
    """6 N D + 2 N D_inference (Sardana et al. 2024, Beyond Chinchilla-Optimal, eq. 2)."""
    return TRAINING * n * d + SERVING * n * served


def lifetime_optimum(law: Law, n: float, d: float, served: float) -> LifetimeOptimum:
    """Minimise training and serving FLOPs over models that reach the loss of `n` parameters trained on `d` tokens (ibid., eq. 3).

    Args:
        law: Of the form E + A / N^alpha + B / D^beta.
        n: Parameters of the given run.
        d: Its training tokens.
        served: Tokens that the model will read and write in its life.
    """
    if law.form not in ("chinchilla", "tied"):
        raise UserError(f"the inference-aware optimum needs a chinchilla law, this one is of the form {law.form}: choose another --law")
    if not served >= 0:
        raise UserError(f"inference_tokens={served} must not be negative")
    p = law.params
    beta = p["alpha" if law.form == "tied" else "beta"]
    reducible = float(law.loss(n, d)) - p["E"]

    def tokens(log_n: float) -> float:
        left = reducible - p["A"] / math.exp(log_n) ** p["alpha"]
        return (p["B"] / left) ** (1 / beta) if left > 0 else math.inf

    # Below n_least no amount of data reaches the loss. The cost has one minimum in ln N: golden sections find it.
    low, high = math.log((p["A"] / reducible) ** (1 / p["alpha"])), math.log(n) + 5
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if lifetime_flops(math.exp(a), tokens(a), served) < lifetime_flops(math.exp(b), tokens(b), served):
            high = b
        else:
            low = a
    best = (low + high) / 2
    flops = lifetime_flops(math.exp(best), tokens(best), served)
    return LifetimeOptimum(math.exp(best), tokens(best), flops, lifetime_flops(n, d, served) - flops)
