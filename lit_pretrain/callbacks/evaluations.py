"""Evaluations within training: scores of tasks, completions of prompts, answers of rollouts.

Scores go to every sink of the metrics, text to TensorBoard. A reward that rises may be one that is
cheated; the answers show it.
"""

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
from lit_pretrain.generate.conversation import complete
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class Evaluations(L.Callback):
    """Score tasks on rank 0, in the dtype of the weights.

    The figures are those of `lit_pretrain evaluate` on the same weights.

    Args:
        run: The run's folder, which holds the tokenizer and the lineage.
        every: Optimizer steps between evaluations; 0 takes only the last.
        request: Which tasks, and how.
        sinks: Who is told the figures; those of `Metrics`, which are filled later.
        on_done: Told how many seconds it took.
        on_batch: Called after every batch of requests.
    """

    def __init__(
        self,
        run: Path,
        *,
        every: int,
        request: EvaluationRequest,
        sinks: Sequence[Callable[[int, dict[str, float]], None]],
        on_done: Callable[[float], None],
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        if every < 0:
            raise UserError(f"evaluate_every={every} must not be negative")
        self.run = run
        self.every = every
        self.request = request
        self.sinks = sinks
        self.on_done = on_done
        self.on_batch = on_batch
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
            on_batch=self.on_batch,
        )
        self.latest = flat({}, scores)
        for sink in self.sinks:
            sink(step, dict(self.latest))
        self.on_done(time.perf_counter() - began)


class AnswersShown(L.Callback):
    """Write a few prompts with their answers and rewards to TensorBoard.

    Answers of training appear at the end of every window of metrics, those of validation at each.

    Args:
        every: Optimizer steps between those of training.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.writer: Any = None
        """TensorBoard's SummaryWriter, if there is one."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Write answers of the step's rollout."""
        step = trainer.global_step
        if step % self.every == 0 or step == trainer.max_steps:
            self._write("answers/train", pl_module, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write answers to the last held-out prompts."""
        if trainer.state.fn == "fit":
            self._write("answers/validation", pl_module, trainer.global_step)

    def _write(self, name: str, stage: Any, step: int) -> None:
        if self.writer is None or stage.answers is None or not stage.answers.shown:
            return
        lines = ["| prompt | answer | right | reward |", "|---|---|---|---|"]
        for shown in stage.answers.shown:
            end = " (cut off)" if shown.truncated else ""
            lines.append(
                f"| {_cell(shown.prompt)} | {_cell(shown.completion)}{end} | {_cell(shown.right)} |"
                f" {shown.reward:g} |"
            )
        self.writer.add_text(name, "\n".join(lines), step)


def _cell(text: str) -> str:
    """Escape a text so that it stays in its cell of a Markdown table."""
    shown = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
    return shown.replace("\r", "").replace("\n", "<br>")


class TextSamples(L.Callback):
    """Complete a few prompts at validations and at the end, on rank 0.

    Args:
        run: The run's folder, which holds the tokenizer.
        every: Optimizer steps between samples (taken at the next validation); 0 takes only the
            last.
        prompts: What to complete; the empty prompt starts a document.
        tokens: Longest completion in tokens.
        on_done: Told how many seconds it took.
    """

    def __init__(
        self,
        run: Path,
        *,
        every: int,
        prompts: Sequence[str],
        tokens: int,
        on_done: Callable[[float], None],
    ) -> None:
        if every < 0 or tokens < 1:
            raise UserError(
                f"sample_every={every} must not be negative and sample_tokens={tokens} at least 1"
            )
        self.run = run
        self.every = every
        self.prompts = tuple(prompts)
        self.tokens = tokens
        self.on_done = on_done
        self.latest: dict[str, str] = {}
        self.writer: Any = None
        """TensorBoard's SummaryWriter, if there is one."""
        self._next = every

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write samples when they are due."""
        step = trainer.global_step
        due = step == trainer.max_steps or (self.every and step >= self._next)
        # A sharded network would have to gather on every rank for every token.
        if (
            trainer.state.fn != "fit"
            or not due
            or not self.prompts
            or isinstance(trainer.strategy, ModelParallelStrategy)
        ):
            return
        self._next = step + self.every
        if not trainer.is_global_zero:
            return
        began = time.perf_counter()
        tokenizer = Tokenizer.load(str(self.run))
        texts = complete(
            pl_module.net,
            tokenizer,
            self.prompts,
            max_new_tokens=self.tokens,
            temperature=0.8,
            top_p=0.95,
            seed=0,
        )
        self.latest = dict(zip(self.prompts, texts, strict=True))
        if self.writer is not None:
            for prompt, text in self.latest.items():
                self.writer.add_text(
                    f"samples/{prompt.strip() or 'start'}",
                    f"    {prompt}{text}".replace("\n", "\n    "),
                    step,
                )
        self.on_done(time.perf_counter() - began)
