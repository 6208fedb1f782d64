"""Planned runs: what a sweep makes, what it costs, what of it is missing, and making that."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lit_pretrain.checkpoint.resume_contract import flatten
from lit_pretrain.cli.sweep.fit_options import FitOptions
from lit_pretrain.cli.sweep.launch import (
    CONFIGS,
    LaunchSettings,
    Local,
    write_list,
    write_slurm,
)
from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file, writing
from lit_pretrain.plain_data import read_yaml
from lit_pretrain.report.charts import clock
from lit_pretrain.report.run_folder import CONFIG, METRICS, SUMMARY, read_metrics
from lit_pretrain.scaling.planner import HOUR

if TYPE_CHECKING:
    from lit_pretrain.scaling.plan import Question


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    config: FitOptions
    """For `lit_pretrain fit --config`."""
    flops: float
    """Training FLOPs."""
    devices: int
    shape: str
    """Runs of one shape are as fast as each other."""
    speed: float | None
    """FLOPs a second that its devices are expected to make; None where that is not known."""
    speed_source: str = ""


def expected_speed(question: Question) -> tuple[float | None, str]:
    """Compute the FLOPs a second of a planned run from the peak of its devices, with the source."""
    if question.mfu is None or question.device is None:
        return None, ""
    peak = question.device.peak(question.dtype) or 0.0
    speed = peak * question.mfu.value * question.layout.devices * question.goodput
    return speed, f"{question.mfu.value:.0%} of the peak: {question.mfu.source}"


def check_launch(settings: LaunchSettings) -> None:
    """Refuse settings of a launch that cannot work.

    Raises:
        UserError: A number is out of range.
    """
    least = 0 if settings.engine == "slurm" else 1
    if settings.jobs < least:
        raise UserError(f"jobs={settings.jobs} must be at least {least}")
    if settings.threads is not None and settings.threads < 1:
        raise UserError(f"threads={settings.threads} must be at least 1")


# ------------------------------------------------------------------ what is missing


def finished(run: Path) -> bool:
    """Tell whether a run has come to its end."""
    return (run / SUMMARY).is_file()


def missing_runs(out: Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """List the runs that are not finished, after a check that the others are those of this sweep.

    Raises:
        UserError: A run was made by other settings, or by no sweep.
    """
    for run in runs:
        if not (out / run.name / CONFIG).is_file():
            continue
        kept = out / CONFIGS / f"{run.name}.yaml"
        if not kept.is_file():
            raise UserError(
                f"{out / run.name} is a run that no sweep has made: {kept} is not there; choose"
                " another --out"
            )
        before, now = flatten(read_yaml(kept)), flatten(run.config)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            what = "; ".join(
                f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed[:3]
            )
            raise UserError(
                f"{out / run.name} was made by other settings: {what}; choose another --out, or"
                " remove that run"
            )
    return [run for run in runs if not finished(out / run.name)]


# ------------------------------------------------------------------ what it costs


def cost_of(
    runs: Sequence[PlannedRun], missing: Sequence[PlannedRun], settings: LaunchSettings
) -> str:
    """Describe the cost of all runs, and of those that are missing."""
    total, left = sum(run.flops for run in runs), sum(run.flops for run in missing)
    lines = [
        f"total: {len(runs)} runs, {total:.4g} FLOPs"
        + (f"; {len(missing)} to make, {left:.4g} FLOPs" if len(missing) < len(runs) else "")
    ]
    seconds, source = _seconds(runs, missing, Path(settings.out))
    if seconds is None:
        hint = "" if settings.device else "; --device H100, or the like, says it from a peak"
        lines.append(f"time: not known before a run has finished{hint}")
        return "\n".join(lines)
    at_once = max(1, min(settings.jobs or len(missing), len(missing)))
    hours = sum(s * run.devices for s, run in zip(seconds, missing, strict=True)) / HOUR
    cost = (
        ""
        if settings.price is None
        else f", ${hours * settings.price:,.2f} at ${settings.price:,.2f} a device-hour"
    )
    lines.append(
        f"time: {hours:,.3g} device-hours, {clock(sum(seconds) / at_once)} with {at_once} at a"
        f" time{cost} ({source})"
    )
    return "\n".join(lines)


def _seconds(
    runs: Sequence[PlannedRun], missing: Sequence[PlannedRun], out: Path
) -> tuple[list[float] | None, str]:
    """Estimate the seconds of each missing run, and say what that is based on."""
    speeds = [run.speed for run in missing]
    if missing and all(speeds):
        return [run.flops / (run.speed or 1.0) for run in missing], missing[0].speed_source
    measured: dict[str, list[float]] = {}
    for run in runs:
        if not finished(out / run.name) or not (out / run.name / METRICS).is_file():
            continue
        found = [
            line["throughput/flops_per_second"]
            for line in read_metrics(out / run.name)
            if "throughput/flops_per_second" in line
        ]
        if found:
            measured.setdefault(run.shape, []).append(statistics.median(found))
    if not measured:
        return None, ""
    whole = statistics.harmonic_mean([statistics.mean(found) for found in measured.values()])
    seconds = [
        run.flops / (statistics.mean(measured[run.shape]) if run.shape in measured else whole)
        for run in missing
    ]
    return (
        seconds,
        f"at the {whole:.3g} FLOP/s that finished runs reached; starts and validations come on top",
    )


# ------------------------------------------------------------------ making them


def make_runs(settings: LaunchSettings, missing: Sequence[PlannedRun], *, alike: bool) -> str:
    """Make the missing runs on this machine, or write down how another one makes them.

    Args:
        settings: Settings of the launch.
        missing: At least one run.
        alike: Whether a mistake in one run is one in all of them.

    Returns:
        What is done, as a line; empty if all runs are made.

    Raises:
        UserError: The folder cannot be written, or runs failed or were stopped.
    """
    devices = {run.devices for run in missing}
    if len(devices) > 1 and settings.engine == "slurm":
        raise UserError(
            f"--engine slurm: the runs take {' and '.join(map(str, sorted(devices)))} devices, and"
            " the tasks of a job array are all alike; make a sweep of each"
        )
    out = Path(settings.out)
    with writing(f"out: {out}"):
        for run in missing:
            write_file(
                out / CONFIGS / f"{run.name}.yaml",
                yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=120),
            )
    names = [run.name for run in missing]
    if settings.engine == "local":
        Local(settings, {run.name: run.devices for run in missing}, alike=alike).run()
        return ""
    if settings.engine == "slurm":
        file = write_slurm(settings, names, devices.pop())
    else:
        file = write_list(settings, {run.name: run.devices for run in missing})
    how = f"sbatch {file}" if settings.engine == "slurm" else f"bash {file}"
    return (
        f"{file}: {len(names)} runs; `{how}` makes them; the same command again says what is still"
        " missing then"
    )
