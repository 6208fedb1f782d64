"""Goodput: the share of a run's wall time that went into steps which it kept, over all attempts.

goodput.json holds, for every attempt, where its time went, and what had gone where at each of its
checkpoints. What an attempt did after the checkpoint from which the next one went on is lost work;
that follows from the records and is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_pretrain.errors import warn
from lit_pretrain.files import read_sealed_json, seal_json, write_file

GOODPUT_FILENAME = "goodput.json"
Part = Literal["training", "data", "validating", "saving", "starting", "other"]
"""`data` is waiting for it; `other` is samples, evaluations of tasks, profiles, and the summary."""
PARTS: tuple[Part, ...] = ("training", "data", "validating", "saving", "starting", "other")
LOST, BETWEEN = "lost work", "between attempts"
_REPEATED: tuple[Part, ...] = ("training", "data", "validating", "saving", "other")
"""Parts that are lost with the steps that an attempt made too many."""


@dataclass
class AttemptTimes:
    """Hold where the time of one attempt went."""

    began: float
    """Unix time, when the command was started."""
    first_step: int
    step: int
    """The last one that it made."""
    ended: float
    """Unix time of the last record: a killed attempt knows of no later one."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By part."""
    saved: dict[str, dict[str, float]] = field(default_factory=dict)
    """Step of a checkpoint -> `seconds` when it had been saved."""


def read_attempts(run: Path) -> list[AttemptTimes]:
    """Read the attempts of a run; a damaged record is left out, with a warning."""
    file = run / GOODPUT_FILENAME
    if not file.is_file():
        return []
    try:
        loaded: Any = read_sealed_json(file, known=("attempts",))
        return [
            AttemptTimes(
                float(each["began"]), int(each["first_step"]), int(each["step"]),
                float(each["ended"]), _figures(each["seconds"]),
                {step: _figures(then) for step, then in each["saved"].items()},
            )
            for each in loaded["attempts"]
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warn(f"{file} is damaged ({error}); the time of earlier attempts is not counted")
        return []


def _figures(loaded: Mapping[str, Any]) -> dict[str, float]:
    return {part: float(loaded[part]) for part in PARTS if part in loaded}


def write_attempts(run: Path, attempts: Sequence[AttemptTimes]) -> None:
    """Write the attempts of a run."""
    write_file(run / GOODPUT_FILENAME, seal_json({"attempts": [asdict(each) for each in attempts]}))


def goodput(attempts: Sequence[AttemptTimes]) -> dict[str, float]:
    """Add up where the wall time of a run went.

    Args:
        attempts: In their order.

    Returns:
        Part -> seconds, with `LOST` and `BETWEEN`, whose sum is the time from the first start to
        the last record.
    """
    total: dict[str, float] = dict.fromkeys((*PARTS, LOST, BETWEEN), 0.0)
    for number, attempt in enumerate(attempts):
        later = attempts[number + 1 :]
        kept = min((each.first_step for each in later), default=attempt.step)
        then = attempt.seconds
        if kept < attempt.step:
            # Of an attempt that had saved nothing by then, only its start has served.
            before = [int(step) for step in attempt.saved if int(step) <= kept]
            then = attempt.saved[str(max(before))] if before else {}
        for part, seconds in attempt.seconds.items():
            served = then.get(part, 0.0) if part in _REPEATED else seconds
            total[part] += served
            total[LOST] += seconds - served
        if later:
            total[BETWEEN] += max(0.0, later[0].began - attempt.ended)
    return total


def goodput_line(attempts: Sequence[AttemptTimes]) -> str:
    """Say in one line where the wall time of a run went."""
    seconds = goodput(attempts)
    wall = max(sum(seconds.values()), 1e-9)
    others = ", ".join(
        f"{part} {value / wall:.1%}" for part, value in seconds.items() if part != "training"
    )
    count = f"{len(attempts)} attempt{'s' * (len(attempts) != 1)}"
    return f"{seconds['training'] / wall:.1%} of {wall:,.0f} s in {count}; {others}"
