"""Progress: optimizer steps and tokens, on one live line or on a line per report."""

import sys
import time
from typing import IO, Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.report.charts import clock, short

LOSS, REWARD = "train/loss", "train/reward"
"""The loss of a policy gradient is near zero whatever is learned; where there is a reward, it
is what one looks at.
"""
_BAR = 20
_WITH_BAR = 120
"""Columns of a terminal from which on the live line has a bar."""


def fitting(parts: list[tuple[int, str]], width: int) -> str:
    """Join the parts of a line, without the least important ones where they do not fit.

    Args:
        parts: Rank and text of each part, in the order of the line; rank 0 always stays.
        width: Columns of the line.
    """
    kept = [part for part in parts if part[1]]
    while len(line := " | ".join(text for _, text in kept)) > width and len(kept) > 1:
        kept.remove(max(kept, key=lambda part: part[0]))
    return line[:width]


class ProgressLine(L.Callback):
    """Show step of total, tokens, tokens per second, loss and the time left.

    On a terminal it is one live line, elsewhere one plain line per report.

    Args:
        stream: Where to write; a live line if it is a terminal.
        batch: Inputs of the optimizer steps, from which the time left follows.
    """

    def __init__(
        self, stream: IO[str] | None = None, *, batch: BatchSizes = BatchSizes.one(1)
    ) -> None:
        self.batch = batch
        self.stream = stream or sys.stderr
        self.live: Progress | None = None
        self._console = Console(file=self.stream)
        self._training: list[tuple[int, str]] = []
        self._validation: list[tuple[int, str]] = []
        self._began = 0.0
        self._first = 0
        self._total = 0

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Open the line."""
        self._began, self._first, self._total = (
            time.perf_counter(),
            trainer.global_step,
            trainer.max_steps,
        )
        if trainer.is_global_zero and self.stream.isatty():
            bar = [BarColumn(_BAR)] if self._console.width >= _WITH_BAR else []
            self.live = Progress(
                TextColumn("{task.fields[text]}", markup=False), *bar, console=self._console
            )
            self.live.start()
            self.task = self.live.add_task("fit", total=self._total, completed=self._first, text="")
            self._show(self._first)

    def _show(self, step: int) -> None:
        """Draw the live line."""
        assert self.live is not None
        width = self._console.width
        line = fitting(
            [(0, f"step {step}/{self._total}"), *self._training, *self._validation],
            width - _BAR - 1 if width >= _WITH_BAR else width,
        )
        self.live.update(self.task, total=self._total, completed=step, text=line)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Move the bar."""
        if self.live is not None:
            self._show(trainer.global_step)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Take the metrics of a window, of a validation or of tasks; a sink of `Metrics`.

        The statistics of layers and the noise of gradients are too many for a line.
        """
        if any(key.startswith(("roles/", "gradient_signal/")) for key in values):
            return
        if any(key.startswith("eval_") for key in values):
            scores = ", ".join(
                f"{key.removeprefix('eval_').replace('/', ' ')} {value:.4f}"
                for key, value in values.items()
            )
            print(f"step {step}/{self._total} | {scores}", file=self.stream, flush=True)
            return
        if "val/loss" in values:
            value = (
                f"val reward {values['val/reward']:.4f}"
                if "val/reward" in values
                else f"val {values['val/loss']:.4f}"
            )
            more = ""
            if "val/bits_per_byte" in values:
                more = f"{values['val/bits_per_byte']:.4f} bits/byte"
            else:
                of = ("val/rewards/accuracy", "val/steps/accuracy")
                more = next((f"accuracy {values[key]:.1%}" for key in of if key in values), "")
            self._validation = [(2, value), (4, more)]
            if self.live is not None:
                self._show(step)
            else:
                more = f" ({more})" if more else ""
                print(f"step {step}/{self._total} | {value}{more}", file=self.stream, flush=True)
            return
        first, here, end = (self.batch.first(n) for n in (self._first, step, self._total))
        left = (time.perf_counter() - self._began) / max(here - first, 1) * (end - here)
        self._training = [
            (5, f"{short(values['progress/tokens'])} tokens"),
            (3, f"{short(values['throughput/tokens_per_second'])} tok/s"),
            (0, f"reward {values[REWARD]:.4f}" if REWARD in values else f"loss {values[LOSS]:.4f}"),
            (1, f"left {clock(left)}"),
        ]
        if self.live is not None:
            self._show(step)
        else:
            text = " | ".join(part for _, part in self._training)
            print(f"step {step}/{self._total} | {text}", file=self.stream, flush=True)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Read the length again: a run that resumes with its last validation is a step longer."""
        self._total = trainer.max_steps
        if self.live is not None:
            self._show(trainer.global_step)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, error: BaseException
    ) -> None:
        """Close the line, which has hidden the cursor: Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the line."""
        if self.live is not None:
            self.live.stop()
            self.live = None
