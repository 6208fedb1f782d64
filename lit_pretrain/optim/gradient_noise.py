"""Gradient noise: how much of a gradient is chance, from the micro-batches that a step has anyway.

A micro-batch of n tokens has the mean gradient G_i, and the whole step of N tokens their mean G,
weighted by tokens. With the true gradient g and the variance S of one token's gradient, summed over
all parameters, |G_i|² is |g|² + S / n_i on average and |G|² is |g|² + S / N. So (McCandlish et al.
2018, 1812.06162, appendix A.1, here for micro-batches of unequal size)

    S = (mean |G_i|² - |G|²) / (mean 1/n_i - 1/N)        |g|² = |G|² - S / N

are unbiased, and S / |g|² is the noise scale: the batch whose gradient is as much signal as noise.
One step says little, because both are differences of nearly equal numbers, and a ratio of two noisy
numbers is biased. So each is averaged over steps before they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

KEPT = 0.98
"""What an average keeps of itself at a measurement: it spans about 50 of them. Two micro-batches
scatter three times as much as eight.
"""


class Noise(NamedTuple):
    """What one step says of the gradient of some parameters."""

    variance: float
    """Of the gradient of one token, summed over the parameters; below 0 by chance."""
    signal: float
    """Square of the norm of the true gradient; below 0 by chance."""


def noise_of(
    mean_square: float, whole_square: float, *, mean_inverse: float, tokens: float
) -> Noise:
    """Tell noise and signal apart.

    Args:
        mean_square: Mean of |G_i|² over the micro-batches.
        whole_square: |G|² of the whole step.
        mean_inverse: Mean of 1 / n_i.
        tokens: N; there are at least two micro-batches, so it is above every n_i.
    """
    variance = (mean_square - whole_square) / (mean_inverse - 1.0 / tokens)
    return Noise(variance, whole_square - variance / tokens)


class NoiseState(TypedDict):
    """What a checkpoint keeps of the averages."""

    measured: int
    """Steps that have been added."""
    sums: dict[str, list[float]]
    """Noise and signal of each role."""


class NoiseScales:
    """Averages of noise and signal by role, and the noise scales that follow from them."""

    def __init__(self) -> None:
        self.measured = 0
        """Steps that have been added."""
        self._sums: dict[str, Noise] = {}

    def add(self, noises: Mapping[str, Noise]) -> None:
        """Add what a step says of each role."""
        self.measured += 1
        for role, noise in noises.items():
            before = self._sums.get(role, Noise(0.0, 0.0))
            self._sums[role] = Noise(*(KEPT * a + b for a, b in zip(before, noise, strict=True)))

    def scales(self) -> dict[str, float]:
        """Return the noise scale of every role, in tokens.

        A role is left out while either average is not positive: then its signal is too small to be
        seen among so much noise, or its noise among so much signal.
        """
        return {
            role: its.variance / its.signal
            for role, its in self._sums.items()
            if its.variance > 0 and its.signal > 0
        }

    def state(self) -> NoiseState:
        """Return what a checkpoint keeps of the averages."""
        return {
            "measured": self.measured,
            "sums": {role: list(noise) for role, noise in self._sums.items()},
        }

    def load_state(self, state: NoiseState) -> None:
        """Take up the averages of a checkpoint."""
        self.measured = state["measured"]
        self._sums = {role: Noise(*noise) for role, noise in state["sums"].items()}
