"""Equal budgets: the losses of several runs at the same steps, tokens, FLOPs and seconds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.report.run_folder import METRICS, read_metrics, recorded_seconds

AXES = ("steps", "tokens", "FLOPs", "seconds")
_KEYS = {"steps": "step", "tokens": "progress/tokens", "FLOPs": "progress/flops"}


@dataclass(frozen=True)
class Curve:
    """What a run has recorded of itself."""

    axes: Mapping[str, npt.NDArray[np.float64]]
    """For each of `AXES`, how far the run was at each validation."""
    loss: npt.NDArray[np.float64]
    """Validation loss."""
    bits_per_byte: npt.NDArray[np.float64] | None
    training: Mapping[int, float]
    """Optimizer step -> mean training loss of the window that ends with it."""


def read_curve(run: Path) -> Curve | None:
    """Read the validations of a run; None if it has made none, as a merge or an average."""
    lines = read_metrics(run) if (run / METRICS).is_file() else []
    places = [i for i, line in enumerate(lines) if "val/loss" in line]
    if not places:
        return None
    seconds = [recorded_seconds(lines[: i + 1])[0] for i in places]
    held_out = [lines[i] for i in places]
    axes = {
        axis: np.array([line.get(key, np.nan) for line in held_out]) for axis, key in _KEYS.items()
    }
    bits = [line.get("val/bits_per_byte", np.nan) for line in held_out]
    return Curve(
        axes | {"seconds": np.array(seconds)},
        np.array([line["val/loss"] for line in held_out]),
        None if np.isnan(bits).any() else np.array(bits),
        {int(line["step"]): line["train/loss"] for line in lines if "train/loss" in line},
    )


@dataclass(frozen=True)
class EqualBudget:
    """Losses of all runs, or means over several of each, at one place of an axis."""

    axis: str
    at: float
    losses: list[float]


def equal_budgets(curves: Sequence[Curve], *, bits: bool) -> list[EqualBudget]:
    """Compare runs at the largest steps, tokens, FLOPs and seconds that all of them have reached.

    Between two validations the loss is interpolated linearly; an axis on which a run ends before
    another's first validation is left out.

    Args:
        curves: One for each run.
        bits: Whether to compare bits per byte, and not losses.
    """
    found = []
    for axis in AXES:
        ends = [curve.axes[axis][-1] for curve in curves]
        at = float(min(ends))
        if not all(curve.axes[axis][0] <= at for curve in curves):
            continue
        values = [curve.bits_per_byte if bits else curve.loss for curve in curves]
        losses = [
            float(np.interp(at, curve.axes[axis], value))
            for curve, value in zip(curves, values, strict=True)
            if value is not None
        ]
        if len(losses) == len(curves):
            found.append(EqualBudget(axis, at, losses))
    return found


def training_difference(one: Curve, other: Curve) -> float | None:
    """Average the difference of training losses over the last quarter of the common windows.

    Of two runs that read the same rows in the same order the same window holds the same rows, so
    that what makes them hard cancels. None where they have no window in common.
    """
    steps = sorted(one.training.keys() & other.training.keys())
    windows = dict(itertools.pairwise([0, *sorted(one.training)]))
    same = dict(itertools.pairwise([0, *sorted(other.training)]))
    ends = {end for begin, end in windows.items() if same.get(begin) == end}
    steps = [step for step in steps if step in ends]
    last = steps[-max(1, len(steps) // 4) :]
    if not last:
        return None
    return float(np.mean([one.training[step] - other.training[step] for step in last]))
