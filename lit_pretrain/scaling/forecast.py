"""Forecast: the loss of a run that has not been made, with an interval and what that interval
leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ParameterCounts
from lit_pretrain.scaling.bootstrap import Draws, interval, normal_draws
from lit_pretrain.scaling.fitted import StoredFit, read_document
from lit_pretrain.scaling.law import FLOPS_PER_PARAMETER_TOKEN, Floats, Law, coordinates
from lit_pretrain.scaling.published import DEFAULT, PublishedLaw, published_law, published_names

FAR = 10.0
"""Beyond this multiple of the largest fitted compute a forecast is shaded as extrapolation."""
MODEL_ERROR = (
    "the interval comes from resampling the runs: it omits the error of the law's form, and of a"
    " run that is trained or tuned differently. Forecasts of larger runs missed by up to 4 % on the"
    " Chinchilla data and by up to 9.5 % on Gadre et al.'s, whose intervals held 7 of 9"
)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Forecast:
    """One run to come."""

    n: float
    d: float
    c: float
    """6 N D."""
    loss: float
    ci95: Optional[Interval]
    """Of the law's value; None without resamples."""
    run95: Optional[Interval]
    """Of one run's loss: the law's value with the scatter of the fitted runs about it."""
    n_ci95: Optional[Interval]
    """Of N*, where N was asked of the law."""
    d_ci95: Optional[Interval]
    beyond: float
    """C as a multiple of the largest fitted compute."""

    @property
    def far(self) -> bool:
        """Whether this is more than ten times the largest fitted compute."""
        return self.beyond > FAR


def forecast(
    law: Law,
    *,
    n: Optional[float] = None,
    d: Optional[float] = None,
    flops: Optional[float] = None,
    unique: Optional[float] = None,
    largest_compute: float,
    draws: Optional[Draws] = None,
    residuals: Optional[Floats] = None,
    seed: int = 0,
) -> Forecast:
    """Forecast a run by N and D, by its FLOPs alone (then it is the compute-optimal one), or by its
    FLOPs and one of N and D.

    Args:
        law: What was fitted.
        n: Parameters.
        d: Training tokens.
        flops: 6 N D.
        unique: Distinct training tokens (data form).
        largest_compute: 6 N D of the largest fitted run.
        draws: Laws of resampled runs.
        residuals: ln L - ln L_predicted of the fitted runs, for the interval of one run.
        seed: Of the draws of residuals.

    Raises:
        UserError: N, D and FLOPs are too many, too few or not positive.
    """
    for name, value in (("n", n), ("d", d), ("flops", flops), ("unique", unique)):
        if value is not None and not 0 < value < np.inf:
            raise UserError(f"--{name} {value:g} must be positive and finite")
    if (n is None or d is None) and flops is None:
        raise UserError("say which run: --n and --d, or --flops, alone or with one of them")
    if n is not None and d is not None and flops is not None:
        raise UserError("--n, --d and --flops are one too many: FLOPs are 6 N D")
    optimal = n is None and d is None
    n, d = _complete(law, n, d, flops, unique)
    c = FLOPS_PER_PARAMETER_TOKEN * n * d
    ci95 = run95 = n_ci95 = d_ci95 = None
    if draws is not None:
        if optimal:
            splits = np.array([drawn.optimum(c, unique) for drawn in draws.laws])
            losses = np.array(
                [
                    float(drawn.loss(best_n, best_d, unique))
                    for drawn, (best_n, best_d) in zip(draws.laws, splits, strict=True)
                ]
            )
            n_ci95, d_ci95 = interval(splits[:, 0]), interval(splits[:, 1])
        else:
            losses = np.array([float(drawn.loss(n, d, unique)) for drawn in draws.laws])
        ci95 = interval(losses)
        if residuals is not None and len(residuals):
            noise = np.random.default_rng(seed).choice(residuals, size=(20, len(losses)))
            run95 = interval((losses * np.exp(noise)).ravel())
    return Forecast(
        n, d, c, float(law.loss(n, d, unique)), ci95, run95, n_ci95, d_ci95, c / largest_compute
    )


def _complete(
    law: Law,
    n: Optional[float],
    d: Optional[float],
    flops: Optional[float],
    unique: Optional[float],
) -> tuple[float, float]:
    if flops is None:
        assert n is not None
        assert d is not None
        return n, d
    if n is not None:
        return n, flops / (FLOPS_PER_PARAMETER_TOKEN * n)
    if d is not None:
        return flops / (FLOPS_PER_PARAMETER_TOKEN * d), d
    return law.optimum(flops, unique)


# Expected: what a law forecasts of one run, at its end and at every number of tokens on the way
# there.


LOSS_OF_UNIT = {"bits_per_byte": "val/bits_per_byte"}
"""The metric that a law's loss is compared with, where it is not `val/loss`."""
FORECAST_DRAWS = 1000


@dataclass(frozen=True)
class Expected:
    """A law, applied to one run."""

    name: str
    """Of the law, for reading."""
    kept: StoredFit
    n: float
    """Parameters of the run, as the law counts them."""
    tokens: float
    """Of the whole run."""
    outside: tuple[str, ...]
    """In which ways the run is none of those that the law was fitted to; empty: it is among
    them.
    """

    @property
    def metric(self) -> str:
        """Name of the validation metric that the law speaks of."""
        return LOSS_OF_UNIT.get(self.kept.unit, "val/loss")

    def at(self, tokens: float) -> Forecast:
        """Forecast of a run of the same size that ends after so many tokens."""
        kept = self.kept
        return forecast(
            kept.law,
            n=self.n,
            d=tokens,
            largest_compute=kept.largest_compute,
            draws=kept.draws,
            residuals=kept.residuals,
        )

    @cached_property
    def end(self) -> Forecast:
        """Forecast of the run."""
        return self.at(self.tokens)

    def values(self, tokens: float) -> dict[str, float]:
        """The forecast as metrics, to be drawn beside a validation at so many tokens."""
        found = self.at(tokens)
        interval = _interval(found)
        return {"forecast/loss": found.loss} | (
            {} if interval is None else {"forecast/low": interval[0], "forecast/high": interval[1]}
        )

    @property
    def interval(self) -> Optional[Interval]:
        """95 % interval of the run's loss; where the law's runs are not at hand, of the law's
        value alone.
        """
        return _interval(self.end)

    @property
    def text(self) -> str:
        """Loss, interval and law in a few words."""
        interval = (
            "" if self.interval is None else f" ({self.interval[0]:.3f}–{self.interval[1]:.3f})"
        )
        far = f", {self.end.beyond:,.3g} × its largest run" if self.end.far else ""
        return f"{self.end.loss:.3f}{interval} by {self.name}{far}"


def expected(
    counts: ParameterCounts,
    tokens: float,
    *,
    given: Optional[str] = None,
    tokenizer: Optional[str] = None,
) -> Expected:
    """What to expect of a run.

    Args:
        counts: Its parameters.
        tokens: It trains on, all of them new.
        given: A fit kept by `scaling fit --out`, or a published law by name; None: the default one.
        tokenizer: Hash of its tokenizer.

    Raises:
        UserError: There is no such law, or its losses are of other tokens.
    """
    if given is None or given in published_names():
        found = published_law(given or DEFAULT)
        n = float(counts.counted(found.counts))
        return Expected(found.name, _kept(found), n, tokens, tuple(found.outside(n, tokens)))
    if not Path(given).is_file():
        raise UserError(
            f"forecast={given!r} is no file that `scaling fit --out` has written, and no published"
            f" law: {', '.join(published_names())}"
        )
    kept = read_document(Path(given))
    if (
        kept.unit == "nats"
        and None not in (kept.tokenizer, tokenizer)
        and kept.tokenizer != tokenizer
    ):
        raise UserError(
            f"forecast={given}: the law's runs have the tokenizer {str(kept.tokenizer)[:12]}, this"
            f" one has {str(tokenizer)[:12]}: nats per token of different tokens cannot be"
            " compared; fit the law with --unit bits_per_byte"
        )
    n = float(counts.counted(kept.counts))
    return Expected(Path(given).name, kept, n, tokens, ())


def _kept(found: PublishedLaw) -> StoredFit:
    draws = None
    if found.log_covariance is not None:
        draws = normal_draws(
            found, coordinates(found), found.log_covariance, draws=FORECAST_DRAWS, seed=0
        )
    return StoredFit(found, draws, np.empty(0), found.largest_compute, found.counts, found.unit)


def _interval(found: Forecast) -> Optional[Interval]:
    return found.run95 if found.run95 is not None else found.ci95
