"""Forecast the loss of a run before it is trained, with an interval and what that omits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ParameterCounts
from lit_pretrain.scaling.fitted import Draws, StoredFit, interval, normal_draws, read_document
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
    """Forecast loss of one run."""

    n: float
    """Parameters."""
    d: float
    """Training tokens."""
    c: float
    """6 N D."""
    loss: float
    ci95: Interval | None
    """95 % interval of the law's value; None without resamples."""
    run95: Interval | None
    """95 % interval of one run's loss: the law's value with the scatter of the fitted runs."""
    n_ci95: Interval | None
    """95 % interval of N*, where the law chose N; None otherwise."""
    d_ci95: Interval | None
    """95 % interval of D*, likewise."""
    beyond: float
    """C as a multiple of the largest fitted compute."""

    @property
    def far(self) -> bool:
        """Tell whether the run needs more than ten times the largest fitted compute."""
        return self.beyond > FAR


def forecast(
    law: Law,
    *,
    n: float | None = None,
    d: float | None = None,
    flops: float | None = None,
    unique: float | None = None,
    largest_compute: float,
    draws: Draws | None = None,
    residuals: Floats | None = None,
    seed: int = 0,
) -> Forecast:
    """Forecast the loss of one run.

    N and D describe the run, or its FLOPs and one of them, or its FLOPs alone: then it is the
    compute-optimal run of that budget.

    Args:
        law: The fitted law.
        n: Parameters.
        d: Training tokens.
        flops: 6 N D.
        unique: Distinct training tokens (data form).
        largest_compute: 6 N D of the largest fitted run.
        draws: Laws of the bootstrap resamples.
        residuals: ln L - ln L_predicted of the fitted runs, for the interval of one run.
        seed: Seed of the draws of residuals.

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
            noise = np.random.default_rng(seed).choice(np.sort(residuals), size=(20, len(losses)))
            run95 = interval((losses * np.exp(noise)).ravel())
    return Forecast(
        n, d, c, float(law.loss(n, d, unique)), ci95, run95, n_ci95, d_ci95, c / largest_compute
    )


def _complete(
    law: Law,
    n: float | None,
    d: float | None,
    flops: float | None,
    unique: float | None,
) -> tuple[float, float]:
    """Return N and D of the run, from whichever of N, D and FLOPs are given."""
    if flops is None:
        assert n is not None
        assert d is not None
        return n, d
    if n is not None:
        return n, flops / (FLOPS_PER_PARAMETER_TOKEN * n)
    if d is not None:
        return flops / (FLOPS_PER_PARAMETER_TOKEN * d), d
    return law.optimum(flops, unique)


# The forecast of a run that `fit` trains, at its end and at every validation on the way there.

LOSS_OF_UNIT = {"bits_per_byte": "val/bits_per_byte"}
"""Validation metric that a law of this unit is compared with; `val/loss` for any other unit."""
_DRAWS = 1000
"""Laws to draw for a published law with a known covariance."""


@dataclass(frozen=True)
class Expected:
    """A law applied to one run."""

    name: str
    """Name of the law, for display."""
    kept: StoredFit
    n: float
    """Parameters of the run, as the law counts them."""
    tokens: float
    """Training tokens of the whole run."""
    outside: tuple[str, ...]
    """How the run lies outside the law's runs; empty if it is among them."""

    @property
    def metric(self) -> str:
        """Name the validation metric that the law predicts."""
        return LOSS_OF_UNIT.get(self.kept.unit, "val/loss")

    def at(self, tokens: float) -> Forecast:
        """Forecast a run of the same size that ends after `tokens` tokens."""
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
        """Forecast the whole run."""
        return self.at(self.tokens)

    def values(self, tokens: float) -> dict[str, float]:
        """Return the forecast at `tokens` tokens as metrics, to log beside a validation."""
        found = self.at(tokens)
        interval = _interval(found)
        return {"forecast/loss": found.loss} | (
            {} if interval is None else {"forecast/low": interval[0], "forecast/high": interval[1]}
        )

    @property
    def interval(self) -> Interval | None:
        """Return the 95 % interval of the run's loss, or of the law's value without the runs."""
        return _interval(self.end)

    @property
    def text(self) -> str:
        """Describe the forecast in a few words: loss, interval and law."""
        interval = (
            "" if self.interval is None else f" ({self.interval[0]:.3f}–{self.interval[1]:.3f})"
        )
        far = f", {self.end.beyond:,.3g} × its largest run" if self.end.far else ""
        return f"{self.end.loss:.3f}{interval} by {self.name}{far}"


def expected(
    counts: ParameterCounts,
    tokens: float,
    *,
    given: str | None = None,
    tokenizer: str | None = None,
) -> Expected:
    """Apply a law to a run.

    Args:
        counts: Parameters of the run.
        tokens: Training tokens of the run, none of them repeated.
        given: Path of a fit that `scaling fit --out` has written, or name of a published law;
            None for the default law.
        tokenizer: Hash of the run's tokenizer.

    Raises:
        UserError: There is no such law, or its losses are of another tokenizer's tokens.
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
        draws = normal_draws(found, coordinates(found), found.log_covariance, draws=_DRAWS, seed=0)
    return StoredFit(found, draws, np.empty(0), found.largest_compute, found.counts, found.unit)


def _interval(found: Forecast) -> Interval | None:
    return found.run95 if found.run95 is not None else found.ci95
