"""Scaling laws: loss as a function of parameters N and tokens D.

A law has a gradient, a compute-optimal split, and what a fit needs: coordinates and a Jacobian.

Four forms, each of N parameters, D training tokens and, where data is repeated, U unique tokens:

- chinchilla: L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3)
- tied: chinchilla with beta = alpha
- data: chinchilla in effective parameters N' and tokens D', which saturate (Muennighoff et al.
  2023, eq. 5 and 6)
- kaplan: L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, eq. 1.5)

A fit works on coordinates in which all forms are well behaved: logarithms of scales, and exponents
as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_pretrain.errors import UserError

Form = Literal["chinchilla", "tied", "data", "kaplan"]
Floats = NDArray[np.float64]

FLOPS_PER_PARAMETER_TOKEN = 6.0
"""C = 6 N D: forward and backward of one weight for one token, without attention scores.

Kaplan et al. 2020, section 2.1.
"""
PARAMETERS: dict[Form, tuple[str, ...]] = {
    "chinchilla": ("E", "A", "B", "alpha", "beta"),
    "tied": ("E", "A", "B", "alpha"),
    "data": ("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
    "kaplan": ("N_c", "D_c", "alpha_N", "alpha_D"),
}
"""Fitted parameters of each form, in the order of the coordinates."""
EXPONENTS = frozenset({"alpha", "beta", "alpha_N", "alpha_D"})


class ComputeSplit(NamedTuple):
    """The best use of a compute budget: C = 6 n d."""

    n: float
    """Parameters."""
    d: float
    """Training tokens."""


class Exponents(NamedTuple):
    """Growth of the optimum: N* ~ C^a and D* ~ C^b, a + b = 1."""

    a: float
    b: float


@dataclass(frozen=True)
class Law:
    """A form and its parameters (scales themselves, not their logarithms)."""

    form: Form
    params: Mapping[str, float]
    """Value by name, as in PARAMETERS; a tied law also has beta."""

    def __post_init__(self) -> None:
        missing = [name for name in PARAMETERS[self.form] if name not in self.params]
        if missing:
            raise UserError(
                f"a {self.form} law needs {', '.join(PARAMETERS[self.form])}; missing:"
                f" {', '.join(missing)}"
            )

    def loss(self, n: ArrayLike, d: ArrayLike, unique: ArrayLike | None = None) -> Floats:
        """Compute the loss, in the unit that the law was fitted in.

        Args:
            n: Parameters, counted as the law counts them.
            d: Training tokens, repeats included.
            unique: Distinct training tokens (data form); None if none is repeated.
        """
        return np.exp(log_loss(self.form, coordinates(self), n, d, unique))

    def gradient(
        self, n: ArrayLike, d: ArrayLike, unique: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Compute (dL/dN, dL/dD) at fixed unique tokens; None: no token is repeated."""
        n, d = np.asarray(n, float), np.asarray(d, float)
        p = self.params
        if self.form == "kaplan":
            n_part = (p["N_c"] / n) ** (p["alpha_N"] / p["alpha_D"])
            outer = p["alpha_D"] * (n_part + p["D_c"] / d) ** (p["alpha_D"] - 1)
            return -outer * n_part * p["alpha_N"] / p["alpha_D"] / n, -outer * p["D_c"] / d**2
        alpha, beta = p["alpha"], p["alpha" if self.form == "tied" else "beta"]
        if self.form != "data":
            return -alpha * p["A"] * n ** (-alpha - 1), -beta * p["B"] * d ** (-beta - 1)
        e = _effective(coordinates(self), n, d, unique)
        n_slope, d_slope = (
            -alpha * p["A"] * e.n ** (-alpha - 1),
            -beta * p["B"] * e.d ** (-beta - 1),
        )
        # While all tokens are new, more of them also raise the number of parameters that they can
        # feed.
        fed = np.where(e.fresh, e.n_by_log_useful * (beta / alpha) / d, 0.0)
        return n_slope * e.n_by_n, d_slope * e.d_by_d + n_slope * fed

    @property
    def exponents(self) -> Exponents:
        """Return the growth of N* and D* with compute while no data is repeated."""
        p = self.params
        if self.form == "kaplan":
            a = p["alpha_D"] / (p["alpha_N"] + p["alpha_D"])
        else:
            beta = p["alpha" if self.form == "tied" else "beta"]
            a = beta / (p["alpha"] + beta)
        return Exponents(a, 1 - a)

    def optimum(self, c: float, unique: float | None = None) -> ComputeSplit:
        """Split C FLOPs into the N* and D* with the lowest loss, C = 6 N D.

        Args:
            c: Training FLOPs.
            unique: Distinct tokens at hand (data form); None if there are always enough.
        """
        p, nd = self.params, c / FLOPS_PER_PARAMETER_TOKEN
        if self.form == "kaplan":
            r = p["alpha_N"] / p["alpha_D"]
            n = (r * p["N_c"] ** r * nd / p["D_c"]) ** (1 / (1 + r))
            return ComputeSplit(float(n), float(nd / n))
        beta = p["alpha" if self.form == "tied" else "beta"]
        # Hoffmann et al. eq. 4
        g = (p["alpha"] * p["A"] / (beta * p["B"])) ** (1 / (p["alpha"] + beta))
        n = g * nd**self.exponents.a
        if self.form == "data" and unique is not None and nd / n > unique:
            n = self._lowest(nd, unique, n)
        return ComputeSplit(float(n), float(nd / n))

    def _lowest(self, nd: float, unique: float, start: float) -> float:
        """Find N* with repeated data, which has no closed form.

        A grid over ln N is refined around its lowest point.
        """
        low, high = np.log(start) - 15, np.log(start) + 15
        for _ in range(8):
            grid = np.linspace(low, high, 201)
            best = int(np.argmin(self.loss(np.exp(grid), nd / np.exp(grid), unique)))
            low, high = grid[max(best - 1, 0)], grid[min(best + 1, 200)]
        return float(np.exp((low + high) / 2))


def coordinates(law: Law) -> Floats:
    """Return the coordinates of a law: logarithms of scales, plain exponents."""
    return np.array(
        [
            law.params[name] if name in EXPONENTS else np.log(law.params[name])
            for name in PARAMETERS[law.form]
        ]
    )


def from_coordinates(form: Form, theta: Floats) -> Law:
    """Build the law at a point; the inverse of `coordinates`."""
    params = {
        name: float(x if name in EXPONENTS else np.exp(x))
        for name, x in zip(PARAMETERS[form], theta, strict=True)
    }
    if form == "tied":
        params["beta"] = params["alpha"]
    return Law(form, params)


def log_loss(
    form: Form, theta: Floats, n: ArrayLike, d: ArrayLike, unique: ArrayLike | None = None
) -> Floats:
    """Compute ln L at coordinates theta."""
    return _log_loss_parts(form, theta, np.asarray(n, float), np.asarray(d, float), unique)[0]


def jacobian(
    form: Form, theta: Floats, n: ArrayLike, d: ArrayLike, unique: ArrayLike | None = None
) -> Floats:
    """Compute the derivatives of ln L by the coordinates, runs × parameters."""
    n, d = np.asarray(n, float), np.asarray(d, float)
    if form == "kaplan":
        p, _, alpha_n, alpha_d = theta
        value, terms, (w_n, w_d) = _log_loss_parts(form, theta, n, d, unique)
        return np.stack(
            [alpha_n * w_n, alpha_d * w_d, w_n * (p - np.log(n)), value / alpha_d - w_n * terms[0]],
            axis=-1,
        )
    w_e, w_n, w_d = _log_loss_parts(form, theta, n, d, unique)[2]
    if form == "data":
        e = _effective(theta, n, d, unique)
        alpha, beta = theta[3], theta[4]
        # Derivative of ln L by the logarithm of the parameters that the data can feed.
        pull = -alpha * w_n / e.n * e.n_by_log_useful
        by_a = w_n + pull / alpha
        by_b = w_d - pull / alpha
        ratio = (np.log(alpha) - np.log(beta) + theta[1] - theta[2]) / alpha
        by_alpha = (
            -w_n * np.log(e.n) + pull * (1 / alpha - beta / alpha * e.log_unique - ratio) / alpha
        )
        by_beta = -w_d * np.log(e.d) + pull * (e.log_unique / alpha - 1 / (alpha * beta))
        by_rd, by_rn = -beta * w_d / e.d * e.d_by_log_rd, -alpha * w_n / e.n * e.n_by_log_rn
        return np.stack([w_e, by_a, by_b, by_alpha, by_beta, by_rd, by_rn], axis=-1)
    by_alpha, by_beta = -w_n * np.log(n), -w_d * np.log(d)
    exponents = [by_alpha + by_beta] if form == "tied" else [by_alpha, by_beta]
    return np.stack([w_e, w_n, w_d, *exponents], axis=-1)


def _log_loss_parts(
    form: Form, theta: Floats, n: Floats, d: Floats, unique: ArrayLike | None
) -> tuple[Floats, tuple[Floats, ...], tuple[Floats, ...]]:
    """Compute ln L as a log-sum-exp, the logarithms of its terms, and their shares of the sum."""
    if form == "kaplan":
        p, q, alpha_n, alpha_d = theta
        terms: tuple[Floats, ...] = (alpha_n / alpha_d * (p - np.log(n)), q - np.log(d))
        outer = alpha_d
    else:
        e, a, b, alpha = theta[:4]
        beta = alpha if form == "tied" else theta[4]
        if form == "data":
            effective = _effective(theta, n, d, unique)
            n, d = effective.n, effective.d
        terms = (e + 0.0 * (n * d), a - alpha * np.log(n), b - beta * np.log(d))
        outer = 1.0
    stacked = np.stack(np.broadcast_arrays(*terms))
    top = stacked.max(axis=0)
    parts = np.exp(stacked - top)
    total = parts.sum(axis=0)
    return outer * (top + np.log(total)), tuple(stacked), tuple(parts / total)


def effective_size(
    theta: Floats, n: Floats, d: Floats, unique: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Compute the effective N' and D' of a data law at coordinates theta."""
    found = _effective(theta, n, d, unique)
    return found.n, found.d


class _Effective(NamedTuple):
    """Effective parameters and tokens of repeated data, with their derivatives."""

    n: Floats
    d: Floats
    fresh: NDArray[np.bool_]
    """Whether no token is repeated."""
    log_unique: Floats
    n_by_n: Floats
    d_by_d: Floats
    n_by_log_useful: Floats
    n_by_log_rn: Floats
    d_by_log_rd: Floats


def _effective(theta: Floats, n: Floats, d: Floats, unique: ArrayLike | None) -> _Effective:
    """Compute the effective N' and D' of repeated data (Muennighoff et al. eq. 5).

    Repeated tokens, and parameters beyond those that the unique data feeds best, decay in worth.
    """
    _, a, b, alpha, beta = theta[:5]
    r_d, r_n = np.exp(theta[5]), np.exp(theta[6])
    u = d if unique is None else np.minimum(d, np.asarray(unique, float))
    x = (d / u - 1) / r_d
    d_eff = u * (1 + r_d * -np.expm1(-x))
    # Parameters for which u tokens are compute-optimal: N* as a function of D*.
    log_useful = beta / alpha * np.log(u) + (np.log(alpha) - np.log(beta) + a - b) / alpha
    scarce = np.log(n) > log_useful
    useful = np.where(scarce, np.exp(np.minimum(log_useful, np.log(n))), n)
    y = (n / useful - 1) / r_n
    n_eff = useful * (1 + r_n * -np.expm1(-y))
    by_useful = useful * (1 + r_n * -np.expm1(-y)) - n * np.exp(-y)
    return _Effective(
        n=n_eff,
        d=d_eff,
        fresh=np.asarray(d == u),
        log_unique=np.log(u),
        n_by_n=np.exp(-y),
        d_by_d=np.exp(-x),
        n_by_log_useful=np.where(scarce, by_useful, 0.0),
        n_by_log_rn=r_n * useful * (-np.expm1(-y) - y * np.exp(-y)),
        d_by_log_rd=r_d * u * (-np.expm1(-x) - x * np.exp(-x)),
    )
