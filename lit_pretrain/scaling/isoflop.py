"""IsoFLOP analysis: the best model size at each FLOP budget, and how it grows with compute.

Approach 2 of Hoffmann et al. (2022): at a fixed budget the loss is a parabola in ln N near its
minimum; a line through the minima in ln C has the exponents as slopes. This assumes nothing about
the form of the loss, but a parabola is only a local approximation: on the Hoffmann surface with
sizes up to 8 times either side of the optimum, D* at 1e24 FLOPs comes out 2.9 % low (0.4 % with 2
times).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.fitted import LEVEL, interval, usable
from lit_pretrain.scaling.law import FLOPS_PER_PARAMETER_TOKEN, Floats
from lit_pretrain.scaling.regression import fit
from lit_pretrain.scaling.runs import LEAST_BUDGETS, LEAST_SPREAD, SAME_BUDGET, Runs, budgets

LEAST_SIZES = 3
"""Sizes that a budget needs: a parabola has three parameters."""
WIDE = 4.0
"""Factor on either side of the minimum above which a warning names the parabola's bias."""
ONE_SIDED = 0.25
"""Share of a sweep (in ln N) below which its shorter side holds too few runs to fix the minimum."""
_REASONS = 5
"""Most bad budgets whose reasons an error gives."""
_ROUNDS = 10
"""Most rounds of cutting a sweep down to the sizes near its minimum."""


class Line(NamedTuple):
    """A power law: ln y = intercept + slope ln C."""

    intercept: float
    slope: float

    def at(self, c: float) -> float:
        """Evaluate the line at C FLOPs."""
        return float(np.exp(self.intercept + self.slope * np.log(c)))


@dataclass(frozen=True)
class Minimum:
    """One budget: its runs, their parabola, and where that is lowest."""

    runs: Runs
    """Runs that the parabola was fitted to, smallest first."""
    c: float
    """Geometric mean of the runs' FLOPs."""
    parabola: tuple[float, float, float]
    """Loss = p0 + p1 x + p2 x^2 with x = ln N."""
    n: float
    """Size at the minimum."""
    d: float
    """Tokens at the minimum, interpolated between the runs on both sides of it."""
    loss: float
    """Loss at the minimum."""
    residuals: Floats
    """Loss of each run less that of the parabola."""


@dataclass(frozen=True)
class SkippedBudget:
    """A budget that was left out."""

    c: float
    """Geometric mean of its runs' FLOPs."""
    runs: int
    reason: str


@dataclass(frozen=True)
class IsoFlop:
    """Minima of all budgets and the lines through them."""

    minima: tuple[Minimum, ...]
    n_line: Line
    """N* against C, with slope a."""
    d_line: Line
    """D* against C, with slope b."""
    draws: Floats
    """Intercept and slope of both lines for each redraw of the losses, draws × 4; empty without
    redraws.
    """
    discarded: int
    """Number of redraws in which some parabola had no minimum within its sweep."""
    line_interval: tuple[float, float]
    """95 % interval of a from the scatter of the minima about the line alone (Student's t,
    budgets - 2 degrees of freedom).
    """
    warnings: tuple[str, ...]
    skipped: tuple[SkippedBudget, ...] = ()
    """Budgets without a minimum, where they were to be left out."""

    def interval_of(self, quantity: str) -> tuple[float, float] | None:
        """Return the 95 % bootstrap interval of "a" or "b"; None without draws."""
        return interval(self.draws[:, {"a": 1, "b": 3}[quantity]]) if len(self.draws) else None

    def optimum_interval(self, quantity: str, c: float) -> tuple[float, float] | None:
        """Return the 95 % bootstrap interval of "n" or "d" at C FLOPs; None without draws."""
        k = {"n": 0, "d": 2}[quantity]
        return (
            interval(np.exp(self.draws[:, k] + self.draws[:, k + 1] * np.log(c)))
            if len(self.draws)
            else None
        )


def isoflop(
    runs: Runs,
    *,
    within: float | None = None,
    only: Sequence[float] = (),
    skip_bad_budgets: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> IsoFlop:
    """Find the minimum of every budget and the exponents.

    Args:
        runs: At least three sizes at each of at least three budgets.
        within: Use only sizes within this factor of the minimum, which is found again after each
            cut; None uses all sizes.
        only: Use only the budgets at these FLOPs; empty uses all.
        skip_bad_budgets: Leave out budgets that have no minimum, and say why, instead of refusing
            the runs.
        draws: Number of bootstrap redraws; 0 for no interval.
        seed: Seed of the redraws.

    Raises:
        UserError: Too few budgets or sizes, a minimum at the edge of its sweep, sizes within a
            factor of four, or an exponent that is not positive.
    """
    if within is not None and not within > 1:
        raise UserError(
            f"within={within:g} must be above 1: it is a factor in N on either side of the minimum"
        )
    groups = _chosen(budgets(runs), only)
    found, skipped = [], []
    if len(groups) >= LEAST_BUDGETS:
        for group in groups:
            try:
                found.append(_minimum(group, within))
            except UserError as error:
                skipped.append(SkippedBudget(_middle(group), len(group), str(error)))
    reasons = "; ".join(bad.reason for bad in skipped[:_REASONS])
    if len(skipped) > _REASONS:
        reasons += f"; and {len(skipped) - _REASONS} more"
    if skipped and not skip_bad_budgets:
        several = f"{len(skipped)} of {len(groups)} budgets have no minimum: "
        raise UserError(
            (several if len(skipped) > 1 else "")
            + reasons
            + "; --skip_bad_budgets goes on without them" * (len(found) >= LEAST_BUDGETS)
        )
    if len(found) < LEAST_BUDGETS:
        raise UserError(
            f"{len(found if skipped else groups)} FLOP budgets ({_listed(groups)}) give no exponent"
            f" with an error; at least {LEAST_BUDGETS} are needed"
            + (f". Left out: {reasons}" if skipped else "")
        )
    minima = tuple(found)
    log_c = np.log([m.c for m in minima])
    n_line, d_line = (
        _line(log_c, np.log([m.n for m in minima])),
        _line(log_c, np.log([m.d for m in minima])),
    )
    for name, line in (("N*", n_line), ("D*", d_line)):
        if line.slope <= 0:
            raise UserError(
                f"{name} falls with compute (exponent {line.slope:.3f}); the minima do not follow a"
                " law: "
                + ", ".join(f"N* = {m.n:.4g} at {m.c:.3g} FLOPs" for m in minima)
                + ". Look at the parabolas (`lit_pretrain scaling plot`) for runs whose learning"
                " rate was not tuned"
            )
    redrawn, discarded = _redraw(minima, log_c, draws, seed)
    return IsoFlop(
        minima,
        n_line,
        d_line,
        redrawn,
        discarded,
        _line_interval(log_c, np.log([m.n for m in minima])),
        _warnings(minima),
        tuple(skipped),
    )


def _middle(group: Runs) -> float:
    return float(np.exp(np.log(group.c).mean()))


def _chosen(groups: list[Runs], only: Sequence[float]) -> list[Runs]:
    """Keep the budgets at the wanted FLOPs."""
    kept = []
    for c in only:
        near = [
            g for g in groups if g.c.min() / (1 + SAME_BUDGET) <= c <= g.c.max() * (1 + SAME_BUDGET)
        ]
        if not near:
            raise UserError(
                f"--budgets {c:g}: no run has about so many FLOPs; the budgets are"
                f" {', '.join(f'{_middle(g):.3g}' for g in groups)}"
            )
        kept += near
    return [g for g in groups if not only or any(g is one for one in kept)]


def _listed(groups: Sequence[Runs]) -> str:
    return ", ".join(
        f"{len(group)} run{'s' * (len(group) > 1)} at {group.c.min():.3g}" for group in groups
    )


def _minimum(group: Runs, within: float | None) -> Minimum:
    """Find the minimum of one budget, cutting the sweep down to `within` if that is given."""
    budget = f"budget {group.c.mean():.3g} FLOPs"
    kept = group
    for _ in range(_ROUNDS):
        _check_sweep(kept, budget, within)
        p = np.polynomial.polynomial.polyfit(np.log(kept.n), kept.loss, 2)
        if p[2] <= 0:
            raise UserError(
                f"{budget}: the loss has no minimum in N (its parabola opens downwards); look for"
                " runs that went wrong"
            )
        # A parabola that hardly bends has its minimum beyond all numbers, and beyond all sizes.
        n = float(np.exp(np.clip(-p[1] / (2 * p[2]), -700, 700)))
        if not kept.n.min() < n < kept.n.max() or int(np.argmin(kept.loss)) in (0, len(kept) - 1):
            side = "smaller" if n <= kept.n.min() or np.argmin(kept.loss) == 0 else "larger"
            raise UserError(
                f"{budget}: the minimum is at the edge of the sweep (sizes {kept.n.min():.4g} to"
                f" {kept.n.max():.4g}, lowest loss at {kept.n[np.argmin(kept.loss)]:.4g},"
                f" parabola's minimum at {n:.4g}); add {side} models to this budget, or leave"
                " it out"
            )
        inside = [
            i for i in range(len(kept)) if within is None or n / within <= kept.n[i] <= n * within
        ]
        if len(inside) == len(kept):
            break
        kept = kept.take(inside)
    at = np.log(n)
    d = float(np.exp(np.interp(at, np.log(kept.n), np.log(kept.d))))
    fitted = p[0] + p[1] * np.log(kept.n) + p[2] * np.log(kept.n) ** 2
    return Minimum(
        runs=kept,
        c=_middle(kept),
        parabola=(float(p[0]), float(p[1]), float(p[2])),
        n=n,
        d=d,
        loss=float(p[0] + p[1] * at + p[2] * at**2),
        residuals=kept.loss - fitted,
    )


def _check_sweep(kept: Runs, budget: str, within: float | None) -> None:
    sizes = len(np.unique(kept.n))
    rest = f" within a factor of {within:g} of the minimum" if within is not None else ""
    if sizes < LEAST_SIZES:
        raise UserError(
            f"{budget}: {sizes} size{'s' * (sizes != 1)}{rest}; a parabola needs at least"
            f" {LEAST_SIZES}: add sizes"
        )
    spread = float(kept.n.max() / kept.n.min())
    if spread < LEAST_SPREAD and within is None:
        raise UserError(
            f"{budget}: N spreads over a factor of {spread:.2f} only ({kept.n.min():.4g} to"
            f" {kept.n.max():.4g}), so noise decides where the minimum is; at least"
            f" {LEAST_SPREAD:g} is needed: add smaller and larger models"
        )


def _line(x: Floats, y: Floats) -> Line:
    intercept, slope = np.polynomial.polynomial.polyfit(x, y, 1)
    return Line(float(intercept), float(slope))


def _line_interval(x: Floats, y: Floats) -> tuple[float, float]:
    from scipy.stats import t

    line = _line(x, y)
    free = len(x) - 2
    scatter = float(((y - line.intercept - line.slope * x) ** 2).sum() / free)
    half = float(t.ppf((1 + LEVEL) / 2, free)) * np.sqrt(scatter / ((x - x.mean()) ** 2).sum())
    return line.slope - float(half), line.slope + float(half)


def _redraw(minima: Sequence[Minimum], log_c: Floats, draws: int, seed: int) -> tuple[Floats, int]:
    """Redraw the losses and fit both lines again; also count the redraws that lost a minimum.

    The sizes of a sweep were chosen, so they stay; the residuals are pooled over all budgets and
    drawn again. Residuals of a least-squares fit are too small by the factor
    sqrt((runs - parameters) / runs), which is undone.
    """
    total = sum(len(m.runs) for m in minima)
    free = total - 3 * len(minima)
    if draws == 0 or free < 1:
        return np.empty((0, 4)), 0
    pooled = np.concatenate([m.residuals for m in minima]) * np.sqrt(total / free)
    rng = np.random.default_rng(seed)
    log_n, log_d = np.empty((draws, len(minima))), np.empty((draws, len(minima)))
    good = np.full(draws, True)
    for k, m in enumerate(minima):
        x = np.log(m.runs.n)
        middle = x.mean()
        design = np.stack([np.ones_like(x), x - middle, (x - middle) ** 2], axis=-1)
        losses = m.runs.loss - m.residuals + rng.choice(pooled, size=(draws, len(x)))
        _, p1, p2 = np.linalg.pinv(design) @ losses.T
        with np.errstate(divide="ignore", invalid="ignore"):
            log_n[:, k] = middle - p1 / (2 * p2)
        good &= (p2 > 0) & (log_n[:, k] > x[0]) & (log_n[:, k] < x[-1])
        log_d[:, k] = np.interp(log_n[:, k], x, np.log(m.runs.d))
    slopes = (
        [np.polynomial.polynomial.polyfit(log_c, y[good].T, 1).T for y in (log_n, log_d)]
        if good.any()
        else [np.empty((0, 2))] * 2
    )
    return np.concatenate(slopes, axis=1), int((~good).sum())


def _warnings(minima: Sequence[Minimum]) -> tuple[str, ...]:
    """List what makes the minima less certain than they look."""
    found, wide = [], []
    for m in minima:
        below, above = m.n / float(m.runs.n.min()), float(m.runs.n.max()) / m.n
        reach = f"{m.c:.3g} FLOPs (×{below:.1f} below the minimum, ×{above:.1f} above)"
        if min(np.log(below), np.log(above)) < ONE_SIDED * np.log(below * above):
            found.append(
                f"one-sided sweep at {reach}: its minimum hangs on few runs; add"
                f" {'smaller' if below < above else 'larger'} models"
            )
        if max(below, above) > WIDE:
            wide.append(reach)
    if wide:
        found.append(
            f"wide sweep{'s' * (len(wide) > 1)} at {', '.join(wide)}: a parabola is a local truth"
            " and biases the minimum (−2.9 % in D* at 1e24 FLOPs for ×8 either side); compare with"
            f" --within {WIDE:g}"
        )
    exact = [f"{m.c:.3g}" for m in minima if len(m.runs) == LEAST_SIZES]
    if exact:
        found.append(
            f"{LEAST_SIZES} runs at {', '.join(exact)} FLOPs: a parabola goes through all of them"
            " and says nothing about their noise"
        )
    return tuple(found)


BIASED = 0.01
"""Relative error of N* at any budget above which `bias_warning` speaks."""


def bias_warning(found: IsoFlop) -> str | None:
    """Say how far parabolas lead astray on the law that the same runs follow.

    A Chinchilla law is fitted to the runs, its losses are put in the place of theirs, and the
    parabolas of those are compared with the optimum of the law, which is known.

    Returns:
        None if the runs determine no such law, or the bias is small.
    """
    kept = [m.runs for m in found.minima]
    n, d, loss = (np.concatenate([getattr(runs, k) for runs in kept]) for k in ("n", "d", "loss"))
    try:
        law = fit("chinchilla", n, d, loss).law
    except UserError:
        return None  # the parabolas assume no law, so that they may stand without one
    if not usable(law):
        return None
    optima, minima = [], []
    for m in found.minima:
        x, flops = np.log(m.runs.n), FLOPS_PER_PARAMETER_TOKEN * m.runs.n * m.runs.d
        p = np.polynomial.polynomial.polyfit(x, law.loss(m.runs.n, m.runs.d), 2)
        if p[2] <= 0:
            return None
        minima.append(-p[1] / (2 * p[2]))
        c = float(np.exp(np.interp(minima[-1], x, np.log(flops))))
        optima.append(np.log(law.optimum(c).n))
    off = np.array(minima) - np.array(optima)
    worst = int(np.argmax(np.abs(off)))
    if abs(float(np.expm1(off[worst]))) < BIASED:
        return None
    slope = _line(np.log([m.c for m in found.minima]), off).slope
    return (
        "parabolas are biased: of the Chinchilla law that fits these runs they put N* at"
        f" {found.minima[worst].c:.3g} FLOPs {np.expm1(off[worst]):+.1%} off, D*"
        f" {np.expm1(-off[worst]):+.1%}, and the exponent a {slope:+.4f}; `scaling fit` has no"
        " such bias where the law holds"
    )
