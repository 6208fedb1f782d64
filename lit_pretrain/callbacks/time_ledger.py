"""Time ledger: every second of an attempt belongs to one part of `report/goodput.py`."""

import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lit_pretrain.report.goodput import PARTS, AttemptTimes, Part, read_attempts, write_attempts

WRITE_SECONDS = 10.0
"""How often the record is written between checkpoints: what a kill can take from it."""

MOST_SAVED = 100
"""Checkpoints of an attempt that its record knows; a run seldom keeps so many."""


class TimeLedger(L.Callback):
    """Count where the time of this attempt goes, on rank 0.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.attempts: list[AttemptTimes] = []
        """Those before this one, and this one once it has begun."""
        self._now: Part = "starting"
        self._since = self._written = time.monotonic()
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def begin(self, began: float, *, first_step: int, goes_on: bool) -> None:
        """Begin the attempt.

        Args:
            began: When the command was started, by `time.monotonic`.
            first_step: The step from which it goes on; 0 of a new run.
            goes_on: Whether earlier attempts belong to the same run.
        """
        self._since = began
        # By the clock on the wall, which other attempts share; within an attempt only differences
        # count.
        started = time.time() - (time.monotonic() - began)
        earlier = read_attempts(self.run) if goes_on else []
        self.attempts = [*earlier, AttemptTimes(started, first_step, first_step, started)]

    def switch(self, part: Part) -> None:
        """Count from now on as another part."""
        now = time.monotonic()
        self._seconds[self._now] += now - self._since
        self._now, self._since = part, now

    def move(self, part: Part, seconds: float) -> None:
        """Count seconds that have just gone by as another part than they would be."""
        self._seconds[part] += seconds
        # They have gone by already, and must not count for what comes next as well.
        self._since += seconds

    def remember(self, step: int) -> None:
        """Note where the time has gone up to a checkpoint.

        That it is not written yet does no harm: what follows a checkpoint counts as lost only if
        the next attempt goes on from it.
        """
        self.switch(self._now)
        saved = self.attempts[-1].saved
        saved[str(step)] = dict(self._seconds)
        for older in list(saved)[:-MOST_SAVED]:
            del saved[older]

    def write(self, step: int) -> None:
        """Write the record.

        Args:
            step: The last one that was made.
        """
        self.switch(self._now)
        attempt = self.attempts[-1]
        attempt.step, attempt.ended = step, time.time()
        attempt.seconds = dict(self._seconds)
        write_attempts(self.run, self.attempts)
        self._written = time.monotonic()

    def write_if_due(self, step: int) -> None:
        """Write the record if it is older than `WRITE_SECONDS`."""
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write(step)

    # ------------------------------------------------------------------ Lightning's hooks

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        """Count as waiting for the first batch."""
        self.switch("data")

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        """Count as training."""
        self.switch("training")

    def on_validation_start(self, trainer: L.Trainer, *args: object) -> None:
        """Count as validating."""
        self.switch("validating")

    def on_train_end(self, trainer: L.Trainer, *args: object) -> None:
        """Count what follows the last step as other."""
        self.switch("other")


class StepEnd(Checkpoint):
    """Let the ledger count as waiting for data once all other callbacks have seen a step.

    It is a `Checkpoint` because Lightning calls those after all others.
    """

    def __init__(self, ledger: TimeLedger) -> None:
        self.ledger = ledger

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        """End a step; now and then write the record."""
        self.ledger.switch("data")
        if trainer.is_global_zero:
            self.ledger.write_if_due(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, *args: object) -> None:
        """End a validation."""
        if trainer.state.fn == "fit":
            self.ledger.switch("data")
