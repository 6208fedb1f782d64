"""`scaling sweep`: plan runs of FLOP budgets × model sizes, and train those that are missing."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import (
    FitOptions,
    SweepSettings,
    aligned,
    big,
    duration,
    mapping,
)
from lit_pretrain.errors import warn
from lit_pretrain.files import write_file, writing
from lit_pretrain.plain_data import read_yaml
from lit_pretrain.scaling.planner import HOUR

if TYPE_CHECKING:
    from lit_pretrain.scaling.plan import Question
    from lit_pretrain.scaling.sweep import Shared, SweepRun


def main(argv: list[str]) -> int:
    """Run `lit_pretrain scaling sweep`."""
    parser = make_parser(
        "scaling sweep",
        "Train models of several sizes at several FLOP budgets, leaving out the runs that are"
        " already finished.",
    )
    parser.add_class_arguments(SweepSettings, skip={"run"})
    parser.add_argument(
        "--run",
        type=mapping,
        default={},
        help="More options of `fit` that all runs share, as a config has them; they override base.",
    )
    given = parser.instantiate(parser.parse_args(argv))
    settings = SweepSettings(**{name: given[name] for name in SweepSettings.__dataclass_fields__})

    from lit_pretrain.cli.scaling.launch import CONFIGS, Local, write_list, write_slurm
    from lit_pretrain.cli.scaling.options import merged, run_config
    from lit_pretrain.scaling.sweep import SweepRule, sweep_runs, warnings

    _check(settings)
    base = merged(settings)
    question, shared = _shared(base, settings)
    sizes = {name: dataclasses.replace(question.net, **own) for name, own in settings.sizes.items()}
    rule = SweepRule(settings.rule, settings.lr_factor, settings.batch_factor)
    budgets = [(b.flops, list(sizes) if b.sizes is None else b.sizes) for b in settings.budgets]
    runs, out = sweep_runs(budgets, sizes, shared, rule), Path(settings.out)
    configs = {run.name: run_config(base, settings, run) for run in runs}
    _agree(out, configs)
    missing = [run for run in runs if not _finished(out / run.name)]
    print(
        _table(runs, missing),
        f"rule: {rule.text}",
        _cost(runs, missing, settings, question),
        sep="\n\n",
        flush=True,
    )
    for message in warnings(runs, rule):
        warn(message)
    if settings.dry_run or not missing:
        return 0
    with writing(f"out: {out}"):
        for run in missing:
            write_file(
                out / CONFIGS / f"{run.name}.yaml",
                yaml.safe_dump(configs[run.name], sort_keys=False, allow_unicode=True, width=120),
            )
    names = [run.name for run in missing]
    if settings.engine == "local":
        Local(settings, names, shared.devices).run()
        print(
            f"done: {len(runs)} runs; `lit_pretrain scaling isoflop {out}` and `scaling fit {out}`"
            " read them"
        )
    else:
        file = (write_slurm if settings.engine == "slurm" else write_list)(
            settings, names, shared.devices
        )
        how = f"sbatch {file}" if settings.engine == "slurm" else f"bash {file}"
        print(
            f"{file}: {len(names)} runs; `{how}` makes them; the same command again says what is"
            " still missing then"
        )
    return 0


def _check(settings: SweepSettings) -> None:
    """Refuse settings of a sweep that cannot work."""
    from lit_pretrain.errors import UserError, did_you_mean
    from lit_pretrain.model.config import ModelConfig

    least = 0 if settings.engine == "slurm" else 1
    if settings.processes < least:
        raise UserError(f"processes={settings.processes} must be at least {least}")
    for name, value in (
        ("threads", settings.threads),
        ("lr_factor", settings.lr_factor),
        ("batch_factor", settings.batch_factor),
    ):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value:g} must be positive and finite")
    if not settings.sizes:
        raise UserError(
            "sizes: there are none; give each a name and what its shape has of its own: {small:"
            " {n_layer: 2, width: 64}, ...}"
        )
    if not settings.budgets:
        raise UserError(
            "budgets: there are none; give FLOPs, and the sizes that spend them: [{flops: 1e18,"
            " sizes: [small, large]}, ...]"
        )
    known = [f.name for f in dataclasses.fields(ModelConfig)]
    for size, own in settings.sizes.items():
        if not size or not all(c.isalnum() or c in "._-" for c in size):
            raise UserError(
                f"sizes: the name {size!r} becomes a part of a folder's: letters, digits, '.', '_'"
                " and '-' only"
            )
        for field in own:
            if field not in known:
                raise UserError(
                    f"sizes: {size} has {field!r}, which no shape has.{did_you_mean(field, known)}"
                )


def _shared(base: Mapping[str, Any], settings: SweepSettings) -> tuple[Question, Shared]:
    """Put the base config to `plan` as a question, and collect what all runs have in common."""
    from lit_pretrain.cli.plan.question import ask
    from lit_pretrain.cli.scaling.options import checked
    from lit_pretrain.errors import UserError
    from lit_pretrain.optim import AdamW
    from lit_pretrain.scaling.sweep import Shared

    cli = checked(base, settings)
    optimizer = cli.config.model.optimizer.class_path
    if settings.rule != "none" and optimizer.rpartition(".")[2] != AdamW.__name__:
        raise UserError(
            f"rule: {settings.rule} says AdamW's learning rate, but the optimizer is"
            f" {optimizer.rpartition('.')[2]};"
            " take `rule: none`, which leaves the base's rates, or `run: {model: {optimizer:"
            " {class_path: lit_pretrain.optim.AdamW}}}`"
        )
    question = ask(cli, bare=False, own_step=settings.rule == "none")
    arguments = (base.get("model") or {}).get("optimizer", {}).get("init_args") or {}
    shared = Shared(
        seq_len=question.layout.seq_len,
        micro_batch_size=question.layout.rows,
        devices=question.layout.devices,
        batch_tokens=question.step_tokens,
        lr=arguments.get("lr"),
        unique_tokens=question.unique_tokens,
    )
    return question, shared


def _agree(out: Path, configs: Mapping[str, FitOptions]) -> None:
    """Refuse to continue a sweep whose runs were trained with other settings."""
    from lit_pretrain.cli.scaling.launch import CONFIGS
    from lit_pretrain.errors import UserError
    from lit_pretrain.report.run_folder import CONFIG

    for name, config in configs.items():
        if not (out / name / CONFIG).is_file():
            continue
        kept = out / CONFIGS / f"{name}.yaml"
        if not kept.is_file():
            raise UserError(
                f"{out / name} is a run that no sweep has made: {kept} is not there; choose another"
                " --out"
            )
        before, now = _flat(read_yaml(kept)), _flat(config)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            what = "; ".join(
                f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed[:3]
            )
            raise UserError(
                f"{out / name} was made by other settings: {what}; choose another --out, or remove"
                " that run"
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> FitOptions:
    """Flatten a nested config into values by dotted name."""
    found: FitOptions = {}
    for key, value in config.items():
        found |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return found


def _finished(run: Path) -> bool:
    from lit_pretrain.report.run_folder import SUMMARY

    return (run / SUMMARY).is_file()


def _table(runs: Sequence[SweepRun], missing: Sequence[SweepRun]) -> str:
    """Format all runs as a table."""
    rows: list[tuple[str, ...]] = [
        ("FLOPs", "size", "N", "embedding", "D", "D/N", "epochs", "steps", "batch", "lr", "")
    ]
    for run in runs:
        rows.append(
            (
                f"{run.flops:.4g}", run.size, big(run.counts.total),
                f"{run.counts.embedding / run.counts.total:.0%}", big(run.tokens),
                f"{run.tokens / run.counts.total:.3g}",
                "-" if run.epochs is None else f"{run.epochs:.2f}", f"{run.steps:,}",
                f"{run.batch_tokens:,}", "-" if run.lr is None else f"{run.lr:.3g}",
                "" if run in missing else "done",
            )
        )  # fmt: skip
    return "\n".join(aligned(rows, left=(0, 1, 10)))


def _cost(
    runs: Sequence[SweepRun],
    missing: Sequence[SweepRun],
    settings: SweepSettings,
    question: Question,
) -> str:
    """Describe the cost of all runs, and of those that are missing."""
    total, left = sum(run.flops for run in runs), sum(run.flops for run in missing)
    lines = [
        f"total: {len(runs)} runs, {total:.4g} FLOPs"
        + (f"; {len(missing)} to make, {left:.4g} FLOPs" if len(missing) < len(runs) else "")
    ]
    seconds, source = _seconds(missing, settings, question)
    if seconds is None:
        hint = "" if settings.device else "; --device H100, or the like, says it from a peak"
        lines.append(f"time: not known before a run has finished{hint}")
        return "\n".join(lines)
    at_once = max(1, min(settings.processes or len(missing), len(missing)))
    hours = seconds * question.layout.devices / HOUR
    cost = (
        ""
        if settings.price is None
        else f", ${hours * settings.price:,.2f} at ${settings.price:,.2f} a device-hour"
    )
    lines.append(
        f"time: {hours:,.3g} device-hours, {duration(seconds / at_once)} with {at_once} at a"
        f" time{cost} ({source})"
    )
    return "\n".join(lines)


def _seconds(
    missing: Sequence[SweepRun], settings: SweepSettings, question: Question
) -> tuple[float | None, str]:
    """Estimate the time of the missing runs one after the other, and say what it is based on."""
    from lit_pretrain.report.run_folder import METRICS, read_metrics

    if question.mfu is not None and question.device is not None:
        peak = question.device.peak(question.dtype) or 0.0
        speed = peak * question.mfu.value * question.layout.devices
        return (
            sum(run.flops for run in missing) / speed / question.goodput,
            f"{question.mfu.value:.0%} of the peak: {question.mfu.source}",
        )
    measured: dict[str, list[float]] = {}
    for folder in sorted(Path(settings.out).glob(f"*/{METRICS}")):
        speeds = [
            line["throughput/flops_per_second"]
            for line in read_metrics(folder.parent)
            if "throughput/flops_per_second" in line
        ]
        if speeds and _finished(folder.parent):
            measured.setdefault(folder.parent.name.partition("_")[2], []).append(
                statistics.median(speeds)
            )
    if not measured:
        return None, ""
    whole = statistics.harmonic_mean([statistics.mean(speeds) for speeds in measured.values()])
    seconds = sum(
        run.flops / (statistics.mean(measured[run.size]) if run.size in measured else whole)
        for run in missing
    )
    return (
        seconds,
        f"at the {whole:.3g} FLOP/s that finished runs reached; starts and validations come on top",
    )
