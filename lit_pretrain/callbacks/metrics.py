"""Metrics: means over the last few optimizer steps, summed on the device.

Axes of the sums: S sources; M objective metrics, each with its sum and its count (M2).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import lightning as L
import torch
from torch import Tensor

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.checkpoint.layout import WINDOW_KEY, CheckpointEntries
from lit_pretrain.errors import UserError, warn
from lit_pretrain.parallel.strategy import sum_over_tokens

Sink = Callable[[int, dict[str, float]], None]
"""Takes the optimizer step and the metrics of a window or of a validation."""


class UnfinishedWindow(TypedDict):
    """The window in which a checkpoint was saved."""

    sums: list[float]
    """Over all ranks."""
    norms: list[float]
    """Gradient norm of each of its steps."""


class Metrics(L.Callback):
    """Sum metrics over optimizer steps and hand the means of a window to sinks.

    The sums stay on the device and are read once a window.

    Args:
        every: Optimizer steps per window.
        sources: Names of the sources, in the order of the stage's sums.
        batch: Inputs of the optimizer steps over all ranks.
        flops_per_token: Training FLOPs per input token.
        peak: Peak of all devices together in FLOP/s; None where it is not known.
        sinks: Who is told; called on rank 0 only.
    """

    def __init__(
        self,
        *,
        every: int,
        sources: Sequence[str],
        batch: BatchSizes,
        flops_per_token: float,
        peak: float | None,
        sinks: Sequence[Sink],
    ) -> None:
        if every < 1:
            raise UserError(f"log_every={every} must be at least 1")
        self.every = every
        self.sources = tuple(sources)
        self.batch = batch
        self.flops_per_token = flops_per_token
        self.peak = peak
        self.sinks = list(sinks)
        self.expected: Callable[[float], dict[str, float]] | None = None
        """Forecasts to be drawn beside a validation, by the tokens trained on until then; None
        where no law covers the run.
        """
        self.train_seconds = 0.0
        """Wall time of training steps, without validation and checkpoints."""
        self.names: tuple[str, ...] = ()
        """Names of the objective's own means."""
        self._rates: dict[str, float] = {}
        self._unfinished: UnfinishedWindow | None = None
        self._begin(time.perf_counter())

    def _begin(self, now: float) -> None:
        self._sums: Tensor | None = None
        self._norms: list[Tensor] = []
        self._steps = self._timed_steps = 0
        self._data = self._compute = self._paused = 0.0
        self._window = self._last = now

    # ------------------------------------------------------------------ the clock

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Start the first window, or go on with the one in which the run was interrupted."""
        self._begin(time.perf_counter())
        if self._unfinished is not None:
            device = trainer.strategy.root_device
            # The sums are those of all ranks together: one rank takes them over.
            self._sums = (
                torch.tensor(self._unfinished["sums"], dtype=torch.float64, device=device)
                * trainer.is_global_zero
            )
            self._norms = list(torch.tensor(self._unfinished["norms"], device=device))
            self._steps = len(self._norms)
            self._unfinished = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: CheckpointEntries
    ) -> None:
        """Keep the unfinished window, so that a resumed run writes the same means."""
        if self._sums is not None:
            norms = torch.stack(self._norms).float().tolist()
            checkpoint[WINDOW_KEY] = UnfinishedWindow(
                sums=self._total(trainer).tolist(), norms=norms
            )

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: CheckpointEntries
    ) -> None:
        """Take up the window again."""
        self._unfinished = checkpoint.get(WINDOW_KEY)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Count the time since the last step as waiting for data.

        `pause` has taken validation and checkpoints out of it.
        """
        # Before the step: at its end the scheduler has set the rates of the next one.
        self._rates = {
            f"lr/{group.get('name', group.get('role', i))}": float(group["lr"])
            for i, group in enumerate(trainer.optimizers[0].param_groups)
        }
        now = time.perf_counter()
        self._data += now - self._last
        self._last = now

    def pause(self, seconds: float) -> None:
        """Take time that was not training out of the window."""
        self._paused += seconds
        self._last += seconds

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop the clock."""
        self._pause_began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again, and hand the validation to the sinks."""
        if trainer.state.fn == "fit":
            seconds = time.perf_counter() - self._pause_began
            self.pause(seconds)
            values = {
                k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")
            }
            position = self._position(trainer.global_step)
            if self.expected is not None and trainer.is_global_zero:
                values |= self.expected(position["progress/tokens"])
            began = time.perf_counter()
            self._tell(trainer, values | {"time/validation_seconds": seconds} | position)
            self.pause(time.perf_counter() - began)  # a sink may draw pictures

    # ------------------------------------------------------------------ the sums

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Add one optimizer step; at the end of a window, read and report."""
        now = time.perf_counter()
        self._compute += now - self._last
        self._last = now
        step_sums: dict[str, Tensor] = pl_module.sums
        self.names = pl_module.metric_names
        packed = torch.cat(
            [
                step_sums[name].flatten().double()
                for name in ("nats_S", "tokens_S", "terms_S", "means_M2")
            ]
        )
        self._sums = packed if self._sums is None else self._sums + packed
        self._norms.append(step_sums["grad_norm"].detach())
        self._steps += 1
        self._timed_steps += 1
        step = trainer.global_step
        if step % self.every == 0 or step == trainer.max_steps:
            self._report(trainer, step)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Report the window in which a callback of the user's has ended the run."""
        if self._steps:
            self._report(trainer, trainer.global_step)

    def _position(self, step: int) -> dict[str, float]:
        tokens = self.batch.first(step)
        return {"progress/tokens": float(tokens), "progress/flops": tokens * self.flops_per_token}

    def _tokens_of(self, step: int, last: int) -> int:
        """Count the inputs of the last steps before a step."""
        return self.batch.first(step) - self.batch.first(step - last)

    def _total(self, trainer: L.Trainer) -> Tensor:
        """Sum the window over all ranks; all of them call this."""
        assert self._sums is not None
        if trainer.world_size == 1:
            return self._sums
        return sum_over_tokens(trainer.strategy, self._sums.clone())

    def _report(self, trainer: L.Trainer, step: int) -> None:
        total = self._total(trainer)
        norms = torch.stack(self._norms).float()
        numbers, count = total.tolist(), len(self.sources)  # the one synchronisation of the window
        nats, tokens, terms = (numbers[i * count : (i + 1) * count] for i in range(3))
        means = zip(self.names, numbers[3 * count :: 2], numbers[3 * count + 1 :: 2], strict=True)
        now = time.perf_counter()
        wall = max(now - self._window - self._paused, 1e-9)
        self.train_seconds += wall
        rate = self._tokens_of(step, self._timed_steps) / wall
        values = {
            "train/loss": sum(nats) / max(sum(terms), 1.0),
            **{f"train/{name}": value / n for name, value, n in means if n},
            "train/grad_norm": norms.mean().item(),
            "train/grad_norm_max": norms.max().item(),
            **{
                f"train_loss/{s}": n / t
                for s, n, t in zip(self.sources, nats, terms, strict=True)
                if t
            },
            **{
                f"mixture/{s}": t / max(sum(tokens), 1.0)
                for s, t in zip(self.sources, tokens, strict=True)
            },
            "data/supervised_fraction": sum(tokens) / self._tokens_of(step, self._steps),
            "throughput/tokens_per_second": rate,
            "throughput/flops_per_second": rate * self.flops_per_token,
            "time/step_seconds": wall / self._timed_steps,
            "time/data_fraction": self._data / wall,
            "time/compute_fraction": self._compute / wall,
            "time/other_fraction": max(0.0, 1.0 - (self._data + self._compute) / wall),
            **self._position(step),
            **self._rates,
        }
        if self.peak is not None:
            values["throughput/mfu"] = rate * self.flops_per_token / self.peak
        self._tell(trainer, values)
        self._begin(time.perf_counter())

    def _tell(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(trainer.global_step, values)


class GroupSignal:
    """Watch whether the answers to a prompt ever differ in reward: only then do they teach."""

    def __init__(self) -> None:
        self.seen = self.without = False

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Look at a line of metrics; warn once, if the first has no difference."""
        share = values.get("train/groups_with_signal")
        if share is None:
            return
        if share == 0 and not self.seen and not self.without:
            warn(
                f"up to step {step:,} no answer had another reward than the others to its prompt,"
                " so that nothing was learned; look whether the reward can tell answers apart"
            )
        self.seen |= share > 0
        self.without |= share == 0

    def remarks(self) -> list[str]:
        """Warn if no group differed in the whole run."""
        if self.seen or not self.without:
            return []
        return [
            "no answer of this run had another reward than the others to its prompt, so that the"
            " policy learned nothing: take easier problems, more answers to each"
            " (data.group_size), a higher temperature, or another reward"
        ]
