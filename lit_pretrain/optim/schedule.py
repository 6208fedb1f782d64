"""Schedule: the learning rate as a pure function of the step, its spans in steps, tokens or %.

Rates move with the tokens that are read. While the batch has one size, that is with the steps.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError

ScheduleKind = Literal["constant", "cosine", "linear", "wsd"]
DecayShape = Literal["linear", "1-sqrt", "cosine"]

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER = r"([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
_SPAN = re.compile(rf"\s*{_NUMBER}\s*((?:[kmbt](?!ok))?)\s*(%|[a-z]+)?\s*", re.IGNORECASE)
_UNITS = {"step": "steps", "steps": "steps", "token": "tokens", "tokens": "tokens", "%": "%"}
_HINT = "write '100 steps', '5M tokens' or '2%' (of the run)"


def span_to_steps(
    span: str, total_steps: int, batch: BatchSizes, *, name: str = "span", ends: bool = False
) -> int:
    """Read a span of training as whole optimizer steps.

    Tokens and per cent are rounded to the nearest step; a span above zero is at least one step
    long.

    Args:
        span: Such as "100 steps", "1_000 steps", "5M tokens" (k, M, B, T are powers of 1000) or
            "2%" of the tokens of the run. "0" needs no unit.
        total_steps: Optimizer steps of the run.
        batch: Tokens of the optimizer steps, all micro-batches and ranks together.
        name: The setting the span comes from, for messages.
        ends: Whether the span ends with the run, and does not begin with it.

    Raises:
        UserError: The span cannot be read, has no or an unknown unit, is negative, or is not a
            whole number of steps.
    """
    match = _SPAN.fullmatch(str(span))
    if match is None:
        raise UserError(f"{name}: cannot read the span {span!r}; {_HINT}.")
    value = Fraction(match[1].replace("_", "").replace(",", "")) * _MULTIPLES[match[2].lower()]
    if value < 0:
        raise UserError(f"{name}: {span!r} is negative; a span is zero or longer.")
    if match[3] is None:
        if value == 0:
            return 0
        raise UserError(f"{name}: {span!r} has no unit; {_HINT}.")
    unit = _UNITS.get(match[3].lower())
    if unit is None:
        raise UserError(f"{name}: {span!r} has the unknown unit {match[3]!r}; {_HINT}.")
    if unit == "steps":
        if value.denominator != 1:
            raise UserError(f"{name}: {span!r} is not a whole number of steps.")
        return int(value)
    whole = batch.first(total_steps)
    tokens = value * whole / 100 if unit == "%" else value
    if not tokens:
        return 0
    if not ends:
        return max(1, batch.nearest(tokens, later=True))
    if tokens > whole:  # longer than the run, as the caller will say
        return total_steps + math.floor((tokens - whole) / batch.size(0) + Fraction(1, 2))
    return max(1, total_steps - batch.nearest(whole - tokens, later=False))


def factor(
    step: int,
    total_steps: int,
    *,
    kind: ScheduleKind = "cosine",
    warmup_steps: int = 0,
    decay_start: int | None = None,
    final: float = 0.0,
    shape: DecayShape = "linear",
    batch: BatchSizes = BatchSizes.one(1),
) -> float:
    """Compute the factor of the peak learning rate at an optimizer step.

    Warm-up rises linearly, from `1 / warmup_steps` at step 0 to 1 at its last step. The decay
    leaves 1 at its first step and reaches `final` at `total_steps`, which is one step after the
    last, so that the last update is not wasted when `final` is 0.

    Args:
        step: Index of the optimizer step, from 0; `final` holds from `total_steps` on.
        total_steps: Optimizer steps of the run.
        kind: "constant" after warm-up; "cosine" and "linear" decay from the end of warm-up; "wsd"
            (warm-up, stable, decay; Hu et al. 2024) stays at 1 until `decay_start`.
        warmup_steps: Length of the warm-up.
        decay_start: First step of the decay of "wsd".
        final: Factor at the end of the decay.
        shape: Decay of "wsd": "linear", "1-sqrt" (Hägele et al. 2024) or "cosine".
        batch: Tokens of the optimizer steps, with which warm-up and decay move. One size for all
            is any size.
    """
    if step < warmup_steps:
        return batch.first(step + 1) / batch.first(warmup_steps)
    if kind == "constant":
        return 1.0
    if kind == "wsd":
        assert decay_start is not None, "wsd needs decay_start"
        start = decay_start
    else:
        start, shape = warmup_steps, kind
    if step >= total_steps:
        return final
    begin = batch.first(start)
    done = max(0, batch.first(step) - begin) / max(1, batch.first(total_steps) - begin)
    if shape == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    elif shape == "1-sqrt":
        left = 1.0 - math.sqrt(done)
    else:
        left = 1.0 - done
    return final + (1.0 - final) * left


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves over the run.

    Spans are texts with a unit: "100 steps", "5M tokens" or "2%" of the run.
    """

    kind: ScheduleKind = "cosine"
    """constant; cosine or linear from the end of warm-up to the end of the run; wsd: warm-up,
    stable, decay.
    """
    warmup: str = "0"
    """Length of the linear warm-up."""
    decay: str = "20%"
    """Length of the decay of wsd, which ends with the run."""
    decay_start: str | None = None
    """Where the decay of wsd starts, counted from the start of the run; replaces `decay`. A decay
    forked from the checkpoint at step S of a stable run: `decay_start: "S steps"` with the
    `max_steps` at which the fork shall end.
    """
    final: float = 0.0
    """Share of the peak learning rate that is left at the end of the run, in [0, 1]."""
    shape: DecayShape = "linear"
    """Shape of the decay of wsd: linear, 1-sqrt or cosine."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.final <= 1.0:
            raise UserError(
                f"schedule.final must lie in [0, 1], found {self.final}; it is a share of the peak"
                " learning rate."
            )

    def in_steps(self, total_steps: int, batch: BatchSizes) -> Callable[[int], float]:
        """Resolve the spans for one run.

        Args:
            total_steps: Optimizer steps of the run.
            batch: Tokens of the optimizer steps, all micro-batches and ranks together. Rates follow
                the plan: a step that is left out later moves none of those before it.

        Returns:
            The factor as a function of the step; it can be pickled and given to
            `torch.optim.lr_scheduler.LambdaLR`.

        Raises:
            UserError: A span cannot be read, or warm-up and decay do not fit into the run.
        """
        if total_steps < 1:
            raise UserError(
                f"schedule: a run needs at least one optimizer step, found {total_steps}."
            )
        batch = batch.planned
        warmup = span_to_steps(self.warmup, total_steps, batch, name="schedule.warmup")
        if warmup > total_steps:
            raise UserError(
                f"schedule.warmup: {self.warmup!r} is {warmup} steps, longer than the run of"
                f" {total_steps}; shorten it or train longer."
            )
        start = None
        if self.kind == "wsd":
            if self.decay_start is not None:
                start = span_to_steps(
                    self.decay_start, total_steps, batch, name="schedule.decay_start"
                )
                setting = f"schedule.decay_start: {self.decay_start!r}"
            else:
                start = total_steps - span_to_steps(
                    self.decay, total_steps, batch, name="schedule.decay", ends=True
                )
                setting = f"schedule.decay: {self.decay!r}"
            if not warmup <= start <= total_steps:
                raise UserError(
                    f"{setting} starts the decay at step {start}, but it must start between the end"
                    f" of warm-up, step {warmup}, and the end of the run, step {total_steps};"
                    " shorten warm-up or decay, or train longer."
                )
        return functools.partial(
            factor,
            total_steps=total_steps,
            kind=self.kind,
            warmup_steps=warmup,
            decay_start=start,
            final=self.final,
            shape=self.shape,
            batch=batch,
        )

    def factor(self, step: int, total_steps: int, batch: BatchSizes) -> float:
        """Compute the factor of one optimizer step; see `in_steps`."""
        return self.in_steps(total_steps, batch)(step)
