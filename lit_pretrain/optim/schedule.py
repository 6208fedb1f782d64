"""Schedule: the learning rate as a pure function of the step, with spans in steps, tokens or per cent of the run."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from lit_pretrain.errors import UserError

Kind = Literal["constant", "cosine", "linear", "wsd"]
Shape = Literal["linear", "1-sqrt", "cosine"]

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SPAN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([kmbt]?)\s*(steps?|tokens?|tok|%)?\s*", re.IGNORECASE)


def span_to_steps(span: str, total_steps: int, tokens_per_step: int, *, name: str = "span") -> int:
    """Read a span such as "100 steps", "5M tokens" or "2%" (of the run) as whole optimizer steps, rounded to the nearest.

    Args:
        span: The text. "0" needs no unit.
        total_steps: Steps of the run.
        tokens_per_step: Tokens of one optimizer step.
        name: The setting the span comes from, for messages.

    Raises:
        UserError: The span cannot be read, has no unit, or is negative.
    """
    match = _SPAN.fullmatch(str(span))
    if match is None:
        raise UserError(f"{name}: cannot read {span!r}; write '100 steps', '5M tokens' or '2%' of the run.")
    value = float(match[1]) * _MULTIPLES[match[2].lower()]
    unit = (match[3] or "").lower()
    if value < 0:
        raise UserError(f"{name}: {span!r} is negative; a span is zero or longer.")
    if value == 0:
        return 0
    if not unit:
        raise UserError(f"{name}: {span!r} has no unit; write '{span} steps', '{span} tokens' or '{span}%'.")
    if unit == "%":
        value = value / 100 * total_steps
    elif unit.startswith("tok"):
        value = value / tokens_per_step
    return round(value)


def factor(
    step: int,
    total_steps: int,
    *,
    kind: Kind = "cosine",
    warmup_steps: int = 0,
    decay_start: int | None = None,
    decay_steps: int | None = None,
    final: float = 0.0,
    shape: Shape = "linear",
) -> float:
    """Learning-rate factor in [0, 1] of optimizer step `step` (0-based)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return 1.0
    start = warmup_steps if decay_start is None else decay_start
    length = total_steps - start if decay_steps is None else decay_steps
    done = min(1.0, max(0.0, (step - start) / max(1, length)))
    if kind == "cosine" or (kind == "wsd" and shape == "cosine"):
        left = 0.5 * (1 + math.cos(math.pi * done))
    elif kind == "wsd" and shape == "1-sqrt":
        left = 1 - math.sqrt(done)
    else:
        left = 1 - done
    return final + (1 - final) * left


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves over the run."""

    kind: Kind = "cosine"
    """constant; cosine or linear from warm-up to the end; wsd: warm-up, stable, decay."""
    warmup: str = "0"
    """Linear warm-up, such as "100 steps", "5M tokens" or "2%"."""
    decay: str = "20%"
    """Length of the decay of wsd."""
    final: float = 0.0
    """Factor reached at the end of the run."""
    shape: Shape = "linear"
    """Shape of the decay of wsd."""
    decay_start: str | None = None
    """Where the decay of wsd starts, counted from the start of the run; by default where it ends with the run."""

    def factor(self, step: int, total_steps: int, tokens_per_step: int) -> float:
        """Factor of optimizer step `step` in a run of `total_steps`."""
        warmup = span_to_steps(self.warmup, total_steps, tokens_per_step, name="schedule.warmup")
        start = length = None
        if self.kind == "wsd":
            length = span_to_steps(self.decay, total_steps, tokens_per_step, name="schedule.decay")
            start = total_steps - length
            if self.decay_start is not None:
                start = span_to_steps(self.decay_start, total_steps, tokens_per_step, name="schedule.decay_start")
        return factor(step, total_steps, kind=self.kind, warmup_steps=warmup, decay_start=start, decay_steps=length, final=self.final, shape=self.shape)
