"""RunBoard: the TensorBoard logger of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_pretrain.report.charts import (
    LEAST_WINDOWS,
    PNG_HEIGHT,
    PNG_WIDTH,
    chart_png,
    heat_map,
    heat_png,
    loss_charts,
)
from lit_pretrain.report.run_folder import METRICS, read_metrics
from lit_pretrain.report.tensorboard import (
    COMPARED,
    FLOPS_UNIT,
    TEXT_LOSS,
    hparams_summary,
    layout,
    layout_summary,
    tag_of,
)

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_PICTURE_SECONDS = 60.0
"""Seconds between two drawings within a run: they take about one."""


class RunBoard(TensorBoardLogger):
    """Write the events of a run into its own folder, so that TensorBoard calls it by its name.

    Args:
        folder: The run's folder.
        first_step: The step from which the run goes on; TensorBoard drops what an earlier attempt
            wrote of later steps. None for a new run.
    """

    def __init__(self, folder: Path, *, first_step: int | None) -> None:
        super().__init__(
            str(folder), name="", version="", default_hp_metric=False,
            purge_step=None if first_step is None else first_step + 1,
        )  # fmt: skip
        self.folder, self.first_step = folder, first_step
        self.losses = TEXT_LOSS
        """Section of the run's losses; `begin` sets it."""
        self.forecast: str | None = None
        self._drawn = time.perf_counter()

    @rank_zero_only
    def begin(
        self,
        losses: str,
        hparams: Mapping[str, float | str | bool],
        *,
        forecast: str | None = None,
        metrics: Sequence[str] = (),
        rollout: bool = False,
        statistics: bool = False,
        noise_scale: bool = False,
    ) -> None:
        """Write the layout and the hyperparameters before the first step.

        No experiment is declared on the page HPARAMS: TensorBoard would take that of one run for
        all. Without it, it shows the parameters and metrics of every run, those that differ first.

        Args:
            losses: Section of the run's losses, from `loss_section`.
            hparams: From `hyper_parameters`.
            forecast: As for `layout`, like the others.
            metrics: What the objective reports beside its loss.
            rollout: Whether the run answers prompts.
            statistics: Whether the run looks into its layers.
            noise_scale: Whether the run measures its gradient noise.
        """
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        if self.first_step is None:  # what a start left that failed is no part of this run
            for left in self.folder.glob("events.out.tfevents.*"):
                left.unlink()
        self.losses, self.forecast = losses, forecast
        pages = layout(
            losses, forecast=forecast, metrics=metrics, rollout=rollout, statistics=statistics,
            noise_scale=noise_scale,
        )  # fmt: skip
        self._add(layout_summary(pages))
        start = plugin_data_pb2.SessionStartInfo()
        for name, value in hparams.items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(start.hparams[name], kind, value)
        data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        self._add(hparams_summary(metadata.SESSION_START_INFO_TAG, data))
        # TensorBoard drops all events beyond the resumed step, and tokens are more than steps: what
        # is drawn over tokens and FLOPs is written again.
        for line in read_metrics(self.folder) if (self.folder / METRICS).exists() else ():
            self._write_over(line)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics under TensorBoard's names, the losses over tokens and FLOPs as well."""
        super().log_metrics(
            {tag_of(metric, self.losses): value for metric, value in metrics.items()}, step
        )
        self._write_over(metrics)
        if "val/loss" in metrics and time.perf_counter() - self._drawn > _PICTURE_SECONDS:
            self._draw(step or 0)

    def _write_over(self, metrics: Mapping[str, float]) -> None:
        for metric in COMPARED:
            if metric in metrics and "progress/tokens" in metrics:
                for axis, place in (
                    ("tokens", metrics["progress/tokens"]),
                    ("GFLOPs", metrics["progress/flops"] / FLOPS_UNIT),
                ):
                    self.experiment.add_scalar(
                        f"{self.losses}_over_{axis}/{metric}", metrics[metric], round(place)
                    )

    def _draw(self, step: int) -> None:
        """Draw pictures of the run so far; curves only if it is long enough for them."""
        lines = read_metrics(self.folder)
        heat = heat_map(lines)
        if heat is not None:
            self._picture("layers", heat_png(heat), step)
        if sum("train/loss" in line for line in lines) < LEAST_WINDOWS:
            return
        bits = any("val/bits_per_byte" in line for line in lines)
        unit = "nats per token" if bits else "of the objective"
        for chart in loss_charts(lines, unit=unit, forecast=self.forecast):
            self._picture(chart.title, chart_png(chart), step)

    def _picture(self, title: str, png: bytes, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=PNG_HEIGHT, width=PNG_WIDTH, colorspace=4, encoded_image_string=png
        )
        self._add(Summary(value=[Summary.Value(tag=f"Pictures/{title}", image=image)]), step)
        self._drawn = time.perf_counter()

    @rank_zero_only
    def end(self, step: int) -> None:
        """Draw the whole run, and mark it as finished on the page HPARAMS.

        Args:
            step: The last.
        """
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._draw(step)
        done = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
        data = plugin_data_pb2.HParamsPluginData(session_end_info=done)
        self._add(hparams_summary(metadata.SESSION_END_INFO_TAG, data))
        self.finalize("success")

    def _add(self, summary: Summary, step: int = 0) -> None:
        self.experiment._get_file_writer().add_summary(summary, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting. config.yaml holds the hyperparameters; no second file is made."""
        self.experiment.flush()
