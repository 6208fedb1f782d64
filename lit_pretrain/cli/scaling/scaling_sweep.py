"""`scaling sweep`: plan runs of FLOP budgets × model sizes, and train those that are missing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import SweepSettings, aligned, big
from lit_pretrain.cli.sweep.fit_options import mapping, parse_as_plan, shared_options
from lit_pretrain.errors import warn

if TYPE_CHECKING:
    from lit_pretrain.scaling.plan import Question
    from lit_pretrain.scaling.sweep import Shared, SweepRun


_LENGTH = "a run's length follows from its budget"
OURS = {
    "name": "a run is named after its budget and size",
    "runs": "its folder follows from out",
    "max_steps": _LENGTH,
    "max_tokens": _LENGTH,
    "max_flops": _LENGTH,
}
"""Options of `fit` that are for the sweep to set, and why."""


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

    from lit_pretrain.cli.scaling.options import run_config
    from lit_pretrain.cli.sweep.planned_runs import (
        PlannedRun,
        check_launch,
        cost_of,
        expected_speed,
        make_runs,
        missing_runs,
    )
    from lit_pretrain.scaling.sweep import SweepRule, sweep_runs, warnings

    check_launch(settings)
    _check(settings)
    base = shared_options(settings.base, settings.run, OURS)
    question, shared = _shared(base, settings)
    sizes = {name: dataclasses.replace(question.net, **own) for name, own in settings.sizes.items()}
    rule = SweepRule(settings.rule, settings.lr_factor, settings.batch_factor)
    budgets = [(b.flops, list(sizes) if b.sizes is None else b.sizes) for b in settings.budgets]
    runs = sweep_runs(budgets, sizes, shared, rule)
    speed, source = expected_speed(question)
    planned = [
        PlannedRun(
            run.name, run_config(base, settings, run), run.flops, shared.devices, run.size, speed,
            source,
        )
        for run in runs
    ]  # fmt: skip
    missing = missing_runs(Path(settings.out), planned)
    print(
        _table(runs, {run.name for run in missing}),
        f"rule: {rule.text}",
        cost_of(planned, missing, settings),
        sep="\n\n",
        flush=True,
    )
    for message in warnings(runs, rule):
        warn(message)
    if settings.dry_run or not missing:
        return 0
    written = make_runs(settings, missing, alike=True)
    out = settings.out
    print(
        written
        or f"done: {len(runs)} runs; `lit_pretrain scaling isoflop {out}` and `scaling fit {out}`"
        " read them"
    )
    return 0


def _check(settings: SweepSettings) -> None:
    """Refuse settings of a sweep that cannot work."""
    from lit_pretrain.errors import UserError, did_you_mean
    from lit_pretrain.model.config import ModelConfig

    for name, value in (
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
    from lit_pretrain.cli.train.resolve import settings_of
    from lit_pretrain.errors import UserError
    from lit_pretrain.optim import AdamW
    from lit_pretrain.scaling.sweep import Shared

    cli = parse_as_plan(base, settings)
    if settings_of(cli.config.data).get("batch_schedule") is not None:
        raise UserError(
            "data.batch_schedule: the runs of a law have one batch each, by `rule` or of the base;"
            " give data.global_batch_tokens in its place"
        )
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
        batch_tokens=None if question.batch_tokens is None else question.batch_tokens.sizes[0],
        lr=arguments.get("lr"),
        unique_tokens=question.unique_tokens,
    )
    return question, shared


def _table(runs: Sequence[SweepRun], missing: Container[str]) -> str:
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
                "" if run.name in missing else "done",
            )
        )  # fmt: skip
    return "\n".join(aligned(rows, left=(0, 1, 10)))
