"""Run callbacks: what watches a run, as its settings say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from lightning.pytorch import Callback

from lit_pretrain.callbacks.answers_shown import AnswersShown
from lit_pretrain.callbacks.checkpoints import Checkpoints
from lit_pretrain.callbacks.evaluations import Evaluations
from lit_pretrain.callbacks.graceful_stop import GracefulStop
from lit_pretrain.callbacks.metrics import Metrics
from lit_pretrain.callbacks.progress import ProgressLine
from lit_pretrain.callbacks.samples import Samples
from lit_pretrain.cli.settings import RunSettings
from lit_pretrain.errors import UserError
from lit_pretrain.evaluate.harness import Request


class RunCallbacks:
    """The callbacks of one run; what they take time for is no time of training.

    Args:
        folder: Of the run.
        settings: How often each looks around.
        sources: Names of the data's sources.
        tokens_per_step: Inputs per optimizer step over all ranks.
        flops_per_token: Of training.
        contract: What a checkpoint carries.
        seconds: Wall time after which the run saves itself and stops; None: never.

    Raises:
        UserError: Evaluations are asked for, and no task is named.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        *,
        sources: Sequence[str],
        tokens_per_step: int,
        flops_per_token: float,
        contract: Mapping[str, Any],
        seconds: Optional[float],
    ) -> None:
        self.progress = ProgressLine()
        self.metrics = Metrics(
            every=settings.log_every,
            sources=sources,
            tokens_per_step=tokens_per_step,
            flops_per_token=flops_per_token,
            peak=None,
            sinks=[self.progress],
        )
        self.checkpoints = Checkpoints(
            folder,
            every=settings.checkpoint_every,
            keep=settings.keep_checkpoints,
            contract=contract,
            on_saved=self.metrics.pause,
        )
        self.samples = Samples(
            folder,
            every=settings.sample_every,
            prompts=settings.sample_prompts,
            tokens=settings.sample_tokens,
            on_done=self.metrics.pause,
        )
        self.stop = GracefulStop(self.checkpoints, seconds=seconds)
        self.answers_shown = AnswersShown(settings.log_every)
        self.evaluations = self._evaluations(folder, settings)

    def in_order(self) -> list[Callback]:
        """All of them, in the order in which they are called."""
        return [
            self.metrics, self.progress, self.samples, self.answers_shown, *self.evaluations,
            self.checkpoints, self.stop,
        ]  # fmt: skip

    def _evaluations(self, folder: Path, settings: RunSettings) -> list[Callback]:
        if not settings.evaluate_tasks:
            if settings.evaluate_every:
                raise UserError(f"evaluate_every={settings.evaluate_every}, but evaluate_tasks names no task")
            return []
        request = Request(settings.evaluate_tasks, include=settings.evaluate_include, limit=settings.evaluate_limit)
        return [Evaluations(folder, every=settings.evaluate_every, request=request, sinks=self.metrics.sinks, on_done=self.metrics.pause)]
