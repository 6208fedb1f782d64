"""Evaluations: a light set of tasks within training, every so many optimizer steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.errors import UserError
from lit_pretrain.evaluate.harness import EvaluationRequest, flat, load_tasks, run_tasks


class Evaluations(L.Callback):
    """Score tasks on rank 0, in the dtype of the weights.

    The figures are those of `lit_pretrain evaluate` on the same weights.

    Args:
        run: The run's folder, which holds the tokenizer and the lineage.
        every: Optimizer steps between evaluations; 0 takes only the last.
        request: Which tasks, and how.
        sinks: Who is told the figures; those of `Metrics`, which are filled later.
        on_done: Told how many seconds it took.
    """

    def __init__(
        self,
        run: Path,
        *,
        every: int,
        request: EvaluationRequest,
        sinks: Sequence[Callable[[int, dict[str, float]], None]],
        on_done: Callable[[float], None],
    ) -> None:
        if every < 0:
            raise UserError(f"evaluate_every={every} must not be negative")
        self.run = run
        self.every = every
        self.request = request
        self.sinks = sinks
        self.on_done = on_done
        self.loaded = load_tasks(request)  # before the run begins, where a mistake costs nothing
        self.latest: Mapping[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse a network that is spread over ranks.

        Raises:
            UserError: It is.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError(
                "evaluate_tasks needs the whole network on a device; with strategy fsdp evaluate"
                " the finished run"
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Evaluate when it is due; one batch is one optimizer step."""
        step = trainer.global_step
        if not trainer.is_global_zero or not (
            step == trainer.max_steps or (self.every and step % self.every == 0)
        ):
            return
        began = time.perf_counter()
        lineage = Lineage.read(self.run)
        scores = run_tasks(
            pl_module.net,
            ModelTokenizer.of(self.run),
            self.request,
            () if lineage is None else lineage.stages,
            loaded=self.loaded,
        )
        self.latest = flat({}, scores)
        for sink in self.sinks:
            sink(step, dict(self.latest))
        self.on_done(time.perf_counter() - began)
