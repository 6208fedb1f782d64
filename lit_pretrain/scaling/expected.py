"""Expected: what a law forecasts of one run, at its end and at every number of tokens on the way there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ParameterCounts
from lit_pretrain.scaling.bootstrap import normal_draws
from lit_pretrain.scaling.fitted import Kept, read_document
from lit_pretrain.scaling.forecast import Forecast, Interval, forecast
from lit_pretrain.scaling.law import coordinates
from lit_pretrain.scaling.published import DEFAULT, PublishedLaw, law, names

LOSS_OF_UNIT = {"bits_per_byte": "val/bits_per_byte"}
"""The metric that a law's loss is compared with, where it is not `val/loss`."""
DRAWS = 1000


@dataclass(frozen=True)
class Expected:
    """A law, applied to one run."""

    name: str
    """Of the law, for reading."""
    kept: Kept
    n: float
    """Parameters of the run, as the law counts them."""
    tokens: float
    """Of the whole run."""
    outside: tuple[str, ...]
    """In which ways the run is none of those that the law was fitted to; empty: it is among them."""

    @property
    def metric(self) -> str:
        """Name of the validation metric that the law speaks of."""
        return LOSS_OF_UNIT.get(self.kept.unit, "val/loss")

    def at(self, tokens: float) -> Forecast:
        """Forecast of a run of the same size that ends after so many tokens."""
        kept = self.kept
        return forecast(kept.law, n=self.n, d=tokens, largest_compute=kept.largest_compute, draws=kept.draws, residuals=kept.residuals)

    @cached_property
    def end(self) -> Forecast:
        """Forecast of the run."""
        return self.at(self.tokens)

    def values(self, tokens: float) -> dict[str, float]:
        """The forecast as metrics, to be drawn beside a validation at so many tokens."""
        found = self.at(tokens)
        interval = _interval(found)
        return {"forecast/loss": found.loss} | ({} if interval is None else {"forecast/low": interval[0], "forecast/high": interval[1]})

    @property
    def interval(self) -> Optional[Interval]:
        """95 % interval of the run's loss; where the law's runs are not at hand, of the law's value alone."""
        return _interval(self.end)

    @property
    def text(self) -> str:
        """Loss, interval and law in a few words."""
        interval = "" if self.interval is None else f" ({self.interval[0]:.3f}–{self.interval[1]:.3f})"
        far = f", {self.end.beyond:,.3g} × its largest run" if self.end.far else ""
        return f"{self.end.loss:.3f}{interval} by {self.name}{far}"


def expected(counts: ParameterCounts, tokens: float, *, given: Optional[str] = None, tokenizer: Optional[str] = None) -> Expected:
    """What to expect of a run.

    Args:
        counts: Its parameters.
        tokens: It trains on, all of them new.
        given: A fit kept by `scaling fit --out`, or a published law by name; None: the default one.
        tokenizer: Hash of its tokenizer.

    Raises:
        UserError: There is no such law, or its losses are of other tokens.
    """
    if given is None or given in names():
        found = law(given or DEFAULT)
        n = float(counts.counted(found.counts))
        return Expected(found.name, _kept(found), n, tokens, tuple(found.outside(n, tokens)))
    if not Path(given).is_file():
        raise UserError(f"forecast={given!r} is no file that `scaling fit --out` has written, and no published law: {', '.join(names())}")
    kept = read_document(Path(given))
    if kept.unit == "nats" and None not in (kept.tokenizer, tokenizer) and kept.tokenizer != tokenizer:
        raise UserError(
            f"forecast={given}: the law's runs have the tokenizer {str(kept.tokenizer)[:12]}, this one has {str(tokenizer)[:12]}: nats per "
            "token of different tokens cannot be compared; fit the law with --unit bits_per_byte"
        )
    n = float(counts.counted(kept.counts))
    return Expected(Path(given).name, kept, n, tokens, ())


def _kept(found: PublishedLaw) -> Kept:
    draws = None
    if found.log_covariance is not None:
        draws = normal_draws(found, coordinates(found), found.log_covariance, draws=DRAWS, seed=0)
    return Kept(found, draws, np.empty(0), found.largest_compute, found.counts, found.unit)


def _interval(found: Forecast) -> Optional[Interval]:
    return found.run95 if found.run95 is not None else found.ci95
