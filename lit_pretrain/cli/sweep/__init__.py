"""Sweep options of `fit`: plan all combinations, train the missing ones, and compare them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError, warn

if TYPE_CHECKING:
    from lit_pretrain.cli.sweep.fit_options import FitOptions
    from lit_pretrain.cli.sweep.launch import LaunchSettings
    from lit_pretrain.cli.sweep.planned_runs import PlannedRun
    from lit_pretrain.cli.sweep.points import Point

OURS = {
    "name": "runs are named after the options in which they differ",
    "runs": "their folder is out",
    "resume": "a run that is there goes on",
    "config": "name config files before the options",
}
"""Options of `fit` that are for the sweep to set, and why."""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain sweep CONFIG --grid NAME=VALUE,VALUE`."""
    from lit_pretrain.cli.command.parser import make_parser
    from lit_pretrain.cli.sweep.fit_options import mapping, shared_options
    from lit_pretrain.cli.sweep.launch import CONFIGS, LaunchSettings, Unfinished
    from lit_pretrain.cli.sweep.points import (
        as_given,
        combine,
        parse_grid,
        parse_ranges,
        points_of,
    )

    parser = make_parser("sweep", __doc__)
    parser.add_argument(
        "base",
        type=str,
        nargs="*",
        default=[],
        help="Config files of `fit` that all runs share; later ones win.",
    )
    parser.add_argument(
        "--grid",
        type=str,
        action="append",
        default=[],
        help=(
            "NAME=VALUE,VALUE: an option of `fit` and the values to try, all combined with those"
            " of other --grid."
        ),
    )
    parser.add_argument(
        "--points",
        type=as_given,
        default=[],
        help=(
            "A YAML file with a list of mappings of options to values, each of which is combined"
            " with all of --grid."
        ),
    )
    parser.add_argument(
        "--range",
        type=str,
        action="append",
        default=[],
        help="NAME=LOW:HIGH or NAME=LOW:HIGH:log: numbers from which --random draws.",
    )
    parser.add_argument(
        "--random",
        type=int | None,
        default=None,
        help="Draw this many combinations of --range and --grid; a larger number adds runs.",
    )
    parser.add_argument("--draw_seed", type=int, default=0, help="Seed of --random.")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help=(
            "Runs of each combination, with model.seed and data.seed 0, 1, …; 1 leaves both as they"
            " are."
        ),
    )
    parser.add_argument(
        "--set",
        type=mapping,
        default={},
        help="More options of `fit` that all runs share, as a config has them; they override base.",
    )
    parser.add_argument(
        "--compare",
        type=bool,
        default=True,
        help="Compare the runs on held-out documents at the end, as `lit_pretrain compare` does.",
    )
    parser.add_class_arguments(LaunchSettings)
    _refuse_options_of_fit(argv)
    given = parser.instantiate(parser.parse_args(argv))
    settings = LaunchSettings(**{name: given[name] for name in LaunchSettings.__dataclass_fields__})

    from lit_pretrain.cli.sweep.planned_runs import (
        check_launch,
        cost_of,
        finished,
        make_runs,
        missing_runs,
    )
    from lit_pretrain.files import check_output

    check_launch(settings)
    if not (given.grid or given.points or given.random is not None or given.seeds > 1):
        raise UserError(
            "nothing to sweep: say what the runs differ in by --grid NAME=VALUE,VALUE, --points"
            " FILE, --random N with --range NAME=LOW:HIGH, or --seeds N"
        )
    if given.seeds < 1:
        raise UserError(f"--seeds {given.seeds} must be at least 1")
    if not settings.dry_run:
        check_output(Path(settings.out) / CONFIGS / "base.yaml", f"--out={settings.out}")
    points = combine(
        parse_grid(given.grid), points_of(given.points), parse_ranges(given.range), given.random,
        given.draw_seed,
    )  # fmt: skip
    shared = shared_options(given.base, given.set, OURS, where="set")
    runs = _plan(shared, points, settings, seeds=given.seeds)
    missing = missing_runs(Path(settings.out), [run.planned for run in runs])
    planned = [run.planned for run in runs]
    print(_table(runs, missing), cost_of(planned, missing, settings), sep="\n\n", flush=True)
    if settings.dry_run:
        return 0
    failure = None
    if missing:
        try:
            written = make_runs(settings, missing, alike=len(points) == 1)
        except Unfinished as error:
            if error.exit_code != 1:  # a signal
                raise
            failure, written = error, ""
        if written:
            print(written)
            return 0
    made = [run for run in planned if finished(Path(settings.out) / run.name)]
    if failure is None:
        print(f"done: {len(runs)} runs in {settings.out}", flush=True)
    if given.compare and len(made) > 1:
        try:
            _compare(settings.out, made)
        except UserError as error:
            if failure is None:
                raise
            warn(f"the runs that have finished are not compared: {error}")
    if failure is not None:
        raise failure
    return 0


# ------------------------------------------------------------------ planning


@dataclass(frozen=True)
class SweptRun:
    """A planned run, with what the table says of it."""

    planned: PlannedRun
    parameters: int
    steps: float | None
    tokens: float


def _plan(
    shared: Mapping[str, Any], points: Sequence[Point], settings: LaunchSettings, *, seeds: int
) -> list[SweptRun]:
    """Parse and plan every combination, before anything starts.

    Raises:
        UserError: An option is for the sweep to set, or a combination cannot be planned.
        SystemExit: The parser does not know an option, or a value is of another type.
    """
    from lit_pretrain.cli.plan import PlanSettings
    from lit_pretrain.cli.plan.question import ask
    from lit_pretrain.cli.sweep.fit_options import parse_as_plan
    from lit_pretrain.cli.sweep.planned_runs import PlannedRun, expected_speed
    from lit_pretrain.cli.sweep.points import run_names
    from lit_pretrain.scaling.plan import make_plan

    for name in dict.fromkeys(name for point in points for name in point):
        if name in OURS:
            raise UserError(f"{name} is for the sweep to set: {OURS[name]}")
        if name in PlanSettings.__dataclass_fields__ or name in ("help", "print_config"):
            raise UserError(f"{name} is no option of `fit`, so it cannot be swept")
    seeded = [
        point | ({} if seeds == 1 else {"seed": seed}) for point in points for seed in range(seeds)
    ]
    names = iter(run_names(seeded))
    found = []
    for point in points:
        arguments = [f"--{name}={_text(value)}" for name, value in _outer_first(point)]
        try:
            cli = parse_as_plan(shared, settings, arguments)
            question = ask(cli, bare=False)
            plan = make_plan(question)
        except UserError as error:
            where = ", ".join(arguments) or "the config"
            raise UserError(f"{where}: {error}") from None
        resolved = cli.config.as_dict()
        speed, source = expected_speed(question)
        for seed in range(seeds):
            own = [] if seeds == 1 else [("model.seed", seed), ("data.seed", seed)]
            config = point_config(shared, [*_outer_first(point), *own], resolved)
            name = next(names)
            planned = PlannedRun(
                name=name,
                config=config | {"name": name, "runs": settings.out},
                flops=plan["length"]["flops"],
                devices=question.layout.devices,
                shape=repr((question.net, question.layout)),
                speed=speed,
                speed_source=source,
            )
            found.append(
                SweptRun(
                    planned,
                    plan["parameters"]["total"],
                    plan["length"]["steps"],
                    plan["length"]["tokens"],
                )
            )
    return found


def _outer_first(point: Point) -> list[tuple[str, Any]]:
    """Order options so that a class comes before its settings."""
    return sorted(point.items(), key=lambda item: item[0].count("."))


def _text(value: Any) -> str:
    """Write a value as the command line of `fit` reads it."""
    import json

    return value if isinstance(value, str) else json.dumps(value)


def point_config(
    shared: Mapping[str, Any], point: Sequence[tuple[str, Any]], resolved: Mapping[str, Any]
) -> FitOptions:
    """Put a point's options into the config that all runs share.

    Args:
        shared: The config.
        point: Options and values, a class before its settings.
        resolved: The config that the parser has made of both: it says which groups are classes.
    """
    import copy

    from lit_pretrain.cli.train.resolve import UNITS

    config = copy.deepcopy(dict(shared))
    for name, value in point:
        if name in UNITS:  # a run has one length
            for unit in UNITS:
                config.pop(unit, None)
        *groups, last = name.split(".")
        node, known = config, resolved
        for group in groups:
            node, known = _inside(node, known, group)
            inner = node.setdefault(group, {})
            if not isinstance(inner, dict):  # a class by its name alone
                inner = node[group] = {"class_path": inner}
            node, known = inner, known.get(group) or {}
        node, known = _inside(node, known, last)
        there = known.get(last)
        if isinstance(there, Mapping) and "class_path" in there and isinstance(value, str):
            value = {"class_path": there["class_path"]}
        node[last] = copy.deepcopy(value)
    return config


def _inside(
    node: FitOptions, known: Mapping[str, Any], name: str
) -> tuple[FitOptions, Mapping[str, Any]]:
    """Enter the settings of a class, where the group is one and the name is one of them."""
    if "class_path" not in known or name in ("class_path", "init_args"):
        return node, known
    node["class_path"] = known["class_path"]
    return node.setdefault("init_args", {}), known.get("init_args") or {}


# ------------------------------------------------------------------ what is said


def _table(runs: Sequence[SweptRun], missing: Sequence[PlannedRun]) -> str:
    from lit_pretrain.cli.scaling.options import aligned
    from lit_pretrain.report.charts import short

    names = {run.name for run in missing}
    rows: list[tuple[str, ...]] = [("run", "N", "steps", "tokens", "FLOPs", "")]
    rows += [
        (
            run.planned.name,
            short(run.parameters),
            "-" if run.steps is None else f"{run.steps:,.0f}",
            short(run.tokens),
            f"{run.planned.flops:.4g}",
            "" if run.planned.name in names else "done",
        )
        for run in runs
    ]
    return "\n".join(aligned(rows, left=(0, 5)))


def _compare(out: str, runs: Sequence[PlannedRun]) -> None:
    """Compare the runs with the best of them, and write table and picture beside them."""
    from lit_pretrain.cli.compare import compare_runs, write_pictures
    from lit_pretrain.cli.compare.comparison_view import comparison_table
    from lit_pretrain.cli.compare.contenders import best_run

    places = [str(Path(out) / run.name) for run in runs]
    text = all("class_path" not in run.config.get("data", {}) for run in runs)
    findings = compare_runs(places, baseline=best_run(places), documents=text)
    for note in findings.notes:
        warn(note)
    sys.stdout.write(f"\n{comparison_table(findings)}")
    folder = str(Path(out) / "comparison")
    for line in write_pictures(findings, f"{folder}.png", folder):
        print(line)


def _refuse_options_of_fit(argv: Sequence[str]) -> None:
    """Say where options and configs of `fit` belong."""
    from lit_pretrain.cli.command.arguments import read_configs

    for path, content in read_configs(argv):
        if content.keys() & {"model", "data", "trainer", "max_steps"}:
            raise UserError(
                f"{path} is a config of `fit`, and --config takes one of `sweep`; give it by its"
                f" place: lit_pretrain sweep {path} --grid NAME=VALUE,VALUE"
            )
    for arg in argv:
        name = arg.partition("=")[0].removeprefix("--")
        if arg.startswith("--") and name.partition(".")[0] in ("model", "data", "trainer"):
            raise UserError(
                f"--{name} is an option of `fit`: --grid {name}=VALUE,VALUE tries several values,"
                f" and --set '{{{name}: VALUE}}' sets one for all runs"
            )


VERB = Verb(
    main,
    example=(
        "lit_pretrain sweep configs/pretrain/quickstart.yaml --grid"
        " model.optimizer.matrix_lr=0.01,0.02,0.04 --seeds 3"
    ),
)
