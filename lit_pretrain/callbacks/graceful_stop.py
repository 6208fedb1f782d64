"""Graceful stop: SIGTERM and SIGUSR1 save at the next step boundary and end the run with a code of its own."""

import signal
from pathlib import Path
from typing import Any, Optional

import lightning as L

from lit_pretrain.callbacks.checkpoints import Checkpoints
from lit_pretrain.errors import PREEMPTED_EXIT_CODE, UserError


class Preempted(UserError):
    """The run was asked to stop, saved itself, and can be resumed."""

    exit_code = PREEMPTED_EXIT_CODE


class GracefulStop(L.Callback):
    """The handler only sets a flag: saving inside a signal handler hangs now and then."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int = 0
        self.saved: Optional[Path] = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Install the handlers, after Lightning has installed its own."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Agree on stopping (one rank that was asked is enough), and save at once: there may not be much time."""
        asked = self.received != 0
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and trainer.global_step < trainer.max_steps:  # after the last step the run ends by itself
            self.saved = self.checkpoints.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save again after a validation that was due at the same step, so that the resumed run does not repeat or miss it."""
        if self.saved is not None:
            self.saved = self.checkpoints.save(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop before the next step."""
        if self.saved is not None:
            name = signal.Signals(self.received).name if self.received else "a signal on another rank"
            raise Preempted(f"stopped by {name} after step {trainer.global_step}; saved {self.saved}; go on with --resume auto")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
