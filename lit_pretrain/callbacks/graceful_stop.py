"""Graceful stop: a signal or the time limit saves the run at its step, to be resumed."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from lit_pretrain.callbacks.checkpoints import Checkpoints, validates_now
from lit_pretrain.checkpoint.layout import step_of
from lit_pretrain.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    DivergedError,
    UserError,
)

REASONS = ("", "trainer.max_time", "SIGUSR1", "SIGINT", "SIGTERM")
"""Why a run stops, weakest first: the ranks agree on the strongest reason that any of them has."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PATIENCE = b"\nstopping: saves after this step; Ctrl-C again ends at once and saves nothing\n"
ECHO_SECONDS = 0.5
"""How long a signal counts as the one before: torchrun passes on what the terminal or the scheduler
has sent.
"""


class Stopped(UserError):
    """Say that the run was asked to stop, has saved itself, and can be resumed.

    Args:
        reason: One of `REASONS`.
        message: What was saved, and how to go on.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"stopped by {reason} {message}")
        self.exit_code = INTERRUPTED_EXIT_CODE if reason == "SIGINT" else PREEMPTED_EXIT_CODE


class GracefulStop(Checkpoint):
    """Stop a run after the step, or within the validation, in which it is asked to.

    The handler of a signal only sets a flag: saving inside it hangs now and then. It is a
    `Checkpoint` so that Lightning calls it after `Checkpoints`, whose file of the same step it
    takes.

    Args:
        checkpoints: What saves.
        seconds: Wall time after which the run stops by itself; None: never.
    """

    def __init__(self, checkpoints: Checkpoints, *, seconds: float | None = None) -> None:
        self.checkpoints = checkpoints
        self.seconds = seconds
        self.go_on = "go on with --resume auto"
        """How to resume, for people."""
        self._reason = 0
        self._asked: dict[int, float] = {}
        self._before: dict[int, Any] = {}
        self._began = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Install the handlers, after Lightning has installed its own."""
        handle: Callable[[int, Any], None] = partial(self._handle, trainer, trainer.global_step)
        for number in SIGNALS:
            # A shell starts background jobs with SIGINT ignored; Ctrl-C must not reach them.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, handle)

    @property
    def listens(self) -> bool:
        """Tell whether a signal is answered here, after the step."""
        return bool(self._before)

    def _handle(self, trainer: L.Trainer, first_step: int, number: int, frame: Any) -> None:
        now, before, begun = time.monotonic(), self._asked.get(number), trainer.global_step
        if before is not None and now - before < ECHO_SECONDS:
            return
        if number == signal.SIGINT and (self._asked or begun == first_step):  # or nothing to save
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if before is not None:
            # Whoever repeats a signal does not wait for the step, or for the save, any more.
            # Another one is no repetition: Slurm warns with SIGUSR1 before it sends SIGTERM.
            text = f"stopped by a second {name}: ends at once, and saves nothing after step {begun}"
            os.write(2, f"{text}; {self.go_on}\n".encode())
            raise SystemExit(PREEMPTED_EXIT_CODE)
        self._asked[number] = now
        if number == signal.SIGINT and trainer.is_global_zero:
            os.write(2, PATIENCE)  # print is not reentrant
        self._reason = max(self._reason, REASONS.index(name))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop after a step, unless a validation is due: that has to be saved as due."""
        if not validates_now(trainer):
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop before a validation."""
        self._stop_if_asked(trainer, validation_due=True)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop within a validation, which may be long."""
        self._stop_if_asked(trainer, validation_due=True)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop after a validation, except the last: then the run ends by itself."""
        if trainer.global_step < trainer.max_steps:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer, *, validation_due: bool = False) -> None:
        """Agree with the other ranks on a reason to stop; save and leave if there is one.

        One rank that was asked is enough.
        """
        reason = self._agreed_reason(trainer)
        if reason == 0:
            return
        saved = self.checkpoints.latest
        if saved is None or step_of(saved) != trainer.global_step:
            saved = self.checkpoints.save(trainer, validation_due=validation_due)
        self.checkpoints.wait(trainer)
        message = f"after step {trainer.global_step}; saved {saved}; {self.go_on}"
        raise Stopped(REASONS[reason], message)

    def _agreed_reason(self, trainer: L.Trainer) -> int:
        if self.seconds is not None and time.monotonic() - self._began > self.seconds:
            self._reason = max(self._reason, REASONS.index("trainer.max_time"))
        reason = self._reason
        if trainer.world_size > 1:
            own = torch.tensor(reason, device=trainer.strategy.root_device)
            reason = int(trainer.strategy.reduce(own, reduce_op="max"))
        return reason

    def go_on_from(self, earlier: "GracefulStop") -> None:
        """Let the time limit count from the start of an earlier attempt of this process."""
        self._began = earlier._began

    def before_rewind(self, trainer: L.Trainer, refusal: Exception | None) -> None:
        """Stop a run that cannot go back, or that was asked to stop; it has nothing to save.

        All ranks call this, once the first has recorded where the run goes back to. Without it, the
        others would begin the next attempt and wait there for the first.

        Args:
            trainer: Lightning's.
            refusal: Why the first rank does not let the run go back; None on the others.

        Raises:
            Exception: The refusal; on the other ranks a DivergedError.
            Stopped: The run was asked to stop.
        """
        self._restore()
        if not trainer.strategy.reduce_boolean_decision(refusal is None, all=True):
            raise refusal or DivergedError("the run cannot go back; its first rank says why")
        if reason := self._agreed_reason(trainer):
            raise Stopped(REASONS[reason], f"before it goes back; {self.go_on}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the signals' handlers."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
