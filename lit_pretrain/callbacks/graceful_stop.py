"""Graceful stop: SIGTERM and SIGUSR1 save at the next step boundary and end the run with a code of its own."""

import signal
from typing import Any

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
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Install the handlers, after Lightning has installed its own."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop together: one rank that was asked is enough."""
        asked = self.received != 0
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            path = self.checkpoints.save(trainer)
            name = signal.Signals(self.received).name if self.received else "a signal on another rank"
            raise Preempted(f"stopped by {name} after step {trainer.global_step}; saved {path}; go on with --resume auto")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
