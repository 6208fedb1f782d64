"""Guard: sees spikes and collapse in numbers that every rank has before each update.

These are the loss over all ranks, which is reduced with the count that normalises the gradients,
and the gradient norm. Both are read in the one look at the device that a step takes anyway. All
ranks have the same numbers and the same window of earlier ones, and so come to the same decision.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypedDict

from lit_pretrain.errors import CollapsedError, DivergedError, UserError

Action = Literal["off", "warn", "skip", "rewind"]
LEAST = 16
"""Steps that must have been seen before one is compared with them."""
NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""
FLOORS = {"loss": 0.01, "gradient norm": 0.1}
"""Least deviation as a share of what is expected, so that a still window makes nothing a spike."""
IN_LOGARITHMS = "gradient norm"
"""Norms scatter by factors: twice the usual one is as common as half of it."""
NOT_FINITE = 10
"""Steps in a row whose numbers are not finite after which the weights are taken for lost."""
NO_GRADIENT = 1e-10
"""Gradient norms up to here are 0: nothing is learned from them."""
LEAST_NORM = 1e-12
"""Stands for smaller norms, whose logarithm is not defined or would be all that a window shows."""


@dataclass(frozen=True)
class GuardSettings:
    """What happens when loss or gradient norm leap, and when nothing is learned any more."""

    action: Action = "warn"
    """warn: say so. skip: leave the update of the step out. rewind: go back to the last checkpoint
    before the spike, leave the steps around it out of the order, and go on. off: watch nothing.
    """
    window: int = 128
    """Earlier steps with which a step is compared: with their trend through the medians of both
    halves, and their median absolute deviation from it.
    """
    threshold: float = 10.0
    """Robust standard deviations above the trend that make a spike. One is 1.4826 median absolute
    deviations, and at least 1 % of the expected loss; for the norm, of its logarithm, and at least
    0.1, so that at 10 a norm below 2.7 times the expected one is no spike.
    """
    margin: int = 4
    """Steps before and after a spike that a rewind leaves out with it."""
    max_rewinds: int = 5
    """Spikes of a run from which it goes back by itself; the next one ends it with exit code 3."""
    collapse_steps: int = 20
    """Steps in a row without a gradient, or with the loss of guessing, after which a run that has
    collapsed ends with exit code 4.
    """

    def __post_init__(self) -> None:
        for name, least in (("window", LEAST), ("margin", 1), ("collapse_steps", 2)):
            if getattr(self, name) < least:
                raise UserError(f"guard.{name}={getattr(self, name)} must be at least {least}")
        if self.max_rewinds < 0 or not self.threshold > 0:
            raise UserError(
                f"guard.max_rewinds={self.max_rewinds} must not be negative and"
                f" guard.threshold={self.threshold} be positive"
            )


class GuardState(TypedDict):
    """What a checkpoint keeps of a guard."""

    seen: dict[str, list[float]]
    """The window of each figure."""
    counts: list[int]
    """Steps that were not finite, without a gradient and no better than a guess, each in a row, and
    the step of the next look at them."""


class Spike(Exception):
    """Say that a run has to go back: its step spiked and `guard.action` is rewind.

    Args:
        step: The optimizer step, before its update.
        reason: What was seen.
        samples: Global sample numbers of the step on this rank.
    """

    def __init__(self, step: int, reason: str, samples: list[int]) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason
        self.samples = samples


def trend(values: list[float]) -> tuple[float, float]:
    """Fit a line through a window and return what it leads to, and the robust deviation from it.

    The line goes through the medians of both halves, which a few spikes do not move. Without it the
    fall of the loss early in training would count as noise, and hide what leaps. A fall is not
    drawn on, because it flattens.
    """
    half = len(values) // 2
    first, second = median(values[:half]), median(values[-half:])
    slope = (second - first) / (len(values) - half)
    centre = len(values) - (half + 1) / 2
    off = [abs(value - second - slope * (i - centre)) for i, value in enumerate(values)]
    return second + max(0.0, slope * (len(values) - centre)), NORMAL * median(off)


class Guard:
    """Compare each step with a window of earlier ones.

    Args:
        settings: What counts as a spike.
        guessing: Loss of a network that knows nothing, ln V; None where the objective has none.
        needs_gradient: Whether a step without a gradient means that nothing is learned.
    """

    def __init__(
        self, settings: GuardSettings, *, guessing: float | None, needs_gradient: bool
    ) -> None:
        self.settings = settings
        self.guessing = guessing
        self.needs_gradient = needs_gradient
        self._seen: dict[str, deque[float]] = {
            name: deque(maxlen=settings.window) for name in FLOORS
        }
        self._not_finite = self._without_gradient = self._guessing = 0
        self._next_look = settings.collapse_steps

    def state(self) -> GuardState:
        """Return what a checkpoint keeps, so that a resumed run decides the same."""
        return {
            "seen": {name: list(values) for name, values in self._seen.items()},
            "counts": [
                self._not_finite, self._without_gradient, self._guessing, self._next_look,
            ],
        }  # fmt: skip

    def load_state(self, state: GuardState) -> None:
        """Go on from the state of a checkpoint; its window may have had another length."""
        for name, values in state["seen"].items():
            self._seen[name].clear()
            self._seen[name].extend(values)
        self._not_finite, self._without_gradient, self._guessing, self._next_look = state["counts"]

    def judge(
        self, step: int, loss: float, norm: float, samples: Callable[[], list[int]]
    ) -> tuple[bool, str | None]:
        """Decide about the update of a step by its loss and gradient norm over all ranks.

        Args:
            step: The optimizer step.
            loss: In nats per token.
            norm: Global gradient norm, before clipping.
            samples: Returns the samples of the step on this rank.

        Returns:
            Whether to leave the update out, and a warning.

        Raises:
            DivergedError: One of the numbers is not finite, and the settings have no way on.
            Spike: The run is to go back.
        """
        action = self.settings.action
        spike = None if action == "off" else self.spike(loss, norm)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite and (action in ("off", "warn") or self.lost):
            raise DivergedError(
                f"step {step}: the gradient norm is {norm} and the loss {loss:.4f} nats; stopped"
                " before the update, weights and the last checkpoint are good",
                samples(),
            )
        if spike is None:
            return False, None
        if action == "rewind":
            raise Spike(step, spike, samples())
        left_out = action == "skip"
        done = "; its update is left out" if left_out else ""
        return left_out, f"step {step} spikes: {spike}{done}"

    def check_collapse(
        self, step: int, loss: float, norm: float, depends_on_input: Callable[[], bool]
    ) -> None:
        """Look for a step after which nothing is learned any more.

        Args:
            step: The optimizer step.
            loss: In nats per token.
            norm: Global gradient norm.
            depends_on_input: Tells whether the output does, by two forward passes on all ranks.

        Raises:
            CollapsedError: It is one.
        """
        if self.settings.action == "off":
            return
        seen = []
        if self.without_gradient(loss, norm):
            steps = self.settings.collapse_steps
            seen.append(f"the gradient norm has been 0 for {steps} steps")
        if self.guesses(loss) and not depends_on_input():
            seen.append("the output does not depend on the input")
        if seen:
            known = ""
            if self.guessing is not None:
                known = f" (guessing among all tokens: {self.guessing:.4f})"
            raise CollapsedError(
                f"step {step}: training has collapsed: {' and '.join(seen)}; the loss is"
                f" {loss:.4f} nats{known}. Newer checkpoints hold a network that learns nothing any"
                " more: go back before the loss rose, with --resume auto --rewind_to STEP, or with"
                " --fork CHECKPOINT and a lower rate"
            )

    def spike(self, loss: float, norm: float) -> str | None:
        """Say what leaps in a step; None if nothing does. The step then joins the window."""
        values = {"loss": loss, "gradient norm": norm}
        if not all(math.isfinite(value) for value in values.values()):
            self._not_finite += 1
            return f"the loss is {loss:.4f} nats and the gradient norm {norm:.4g}"
        self._not_finite = 0
        found = []
        for name, value in values.items():
            seen = self._seen[name]
            if len(seen) >= LEAST:
                if name == IN_LOGARITHMS:
                    expected, deviation = trend([math.log(max(each, LEAST_NORM)) for each in seen])
                    above = math.log(max(value, LEAST_NORM)) - expected
                    deviation, expected = max(deviation, FLOORS[name]), math.exp(expected)
                else:
                    expected, deviation = trend(list(seen))
                    above = value - expected
                    deviation = max(deviation, FLOORS[name] * abs(expected), 1e-12)
                if above > self.settings.threshold * deviation:
                    found.append(
                        f"the {name} is {value:.4g}, {above / deviation:.0f} deviations above the"
                        f" {expected:.4g} that {len(seen)} steps led to"
                    )
            # Spikes too: a new level of the loss, as of another mixture, is one until the median
            # has followed.
            seen.append(value)
        return " and ".join(found) or None

    @property
    def lost(self) -> bool:
        """Tell whether steps in a row had numbers that are not finite, so that weights have too."""
        return self._not_finite > NOT_FINITE

    def without_gradient(self, loss: float, norm: float) -> bool:
        """Tell whether the gradient has been 0 for long although there is something to learn."""
        none = self.needs_gradient and norm <= NO_GRADIENT and loss != 0.0
        self._without_gradient = self._without_gradient + 1 if none else 0
        return self._without_gradient >= self.settings.collapse_steps

    def guesses(self, loss: float) -> bool:
        """Tell whether it is time to see if the output still depends on the input.

        That is when the loss has been that of guessing for long, as it also is early in a long
        warm-up; the look costs two forward passes, and each comes after twice as many steps as the
        one before.
        """
        if self.guessing is None or loss < 0.98 * self.guessing:
            self._guessing, self._next_look = 0, self.settings.collapse_steps
            return False
        self._guessing += 1
        if self._guessing < self._next_look:
            return False
        self._next_look *= 2
        return True
