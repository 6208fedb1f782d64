"""Options that the parts of `scaling` share, those of its sweep, and the config of each run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_pretrain.cli.command.parser import VerbParser
from lit_pretrain.cli.sweep.fit_options import FitOptions, merge_options
from lit_pretrain.cli.sweep.launch import LaunchSettings
from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import check_local, write_file, writing

if TYPE_CHECKING:
    from lit_pretrain.scaling.fitted import Fitted
    from lit_pretrain.scaling.runs import Runs
    from lit_pretrain.scaling.sweep import SweepRun


def add_runs(parser: VerbParser) -> None:
    """Add the options that say where the runs come from."""
    parser.add_argument("runs", type=str, nargs="*", help="Run folders, or folders of run folders.")
    parser.add_argument(
        "--data",
        type=str,
        nargs="+",
        default=[],
        help="Tables of runs: .csv with a header, .jsonl, or .json with a list of objects.",
    )
    parser.add_argument(
        "--columns",
        type=str,
        default="",
        help=(
            "Columns of the tables, as n=…,d=…,c=…,loss=… and unique=…,unit=…,group=…: parameters,"
            " training tokens, FLOPs, final loss. Two of n, d and c are enough (C = 6 N D). What is"
            " not named is found by its usual names, but for group: runs with the same value in it"
            " are one FLOP budget, whatever their own FLOPs."
        ),
    )
    parser.add_argument(
        "--params",
        type=Literal["total", "matmul", "nonembed"],
        default="total",
        help=(
            "Which parameters N counts: of run folders those that are counted, of tables what their"
            " column holds."
        ),
    )
    parser.add_argument(
        "--unit",
        type=Literal["nats", "bits_per_byte"] | None,
        default=None,
        help=(
            "Unit of the loss: of run folders which of the two, of tables what the column holds"
            " where its name does not say. Default: nats per token where all runs have it."
        ),
    )


def add_fit(parser: VerbParser, *, bootstrap: int) -> None:
    """Add the options that say how to fit the law."""
    parser.add_argument(
        "--law",
        type=Literal["chinchilla", "tied", "data", "kaplan"],
        default="chinchilla",
        help=(
            "chinchilla: E + A/N^alpha + B/D^beta; tied: with alpha = beta; data: with repeated"
            " data (needs unique tokens); kaplan: ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D."
        ),
    )
    parser.add_argument(
        "--loss",
        type=Literal["huber", "lad"],
        default="huber",
        help="Huber on ln L, or least absolute deviations of ln L.",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=1e-3,
        help="The Huber threshold, in ln L (Hoffmann et al.: 1e-3).",
    )
    parser.add_argument(
        "--drop_highest",
        "--drop-highest",
        type=int,
        default=0,
        help="Leave out the runs whose loss is among this many highest.",
    )
    add_bootstrap(parser, bootstrap)


def add_bootstrap(parser: VerbParser, default: int) -> None:
    """Add the options of the bootstrap."""
    parser.add_argument(
        "--bootstrap", type=int, default=default, help="Resamples for the intervals; 0 for none."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the resampling.")


def read_runs(options: Any) -> Runs:
    """Read the runs that the options name."""
    from lit_pretrain.scaling.run_table import parse_columns, read_folders, read_table
    from lit_pretrain.scaling.runs import assemble_runs

    if options.bootstrap < 0 or options.bootstrap == 1:
        raise UserError(
            f"--bootstrap {options.bootstrap}: 0 makes no interval, at least 2 resamples make one;"
            " 1000 are usual"
        )
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must not be negative")
    if options.columns and not options.data:
        raise UserError("--columns names the columns of tables, but no table is given with --data")
    for place in options.runs:
        check_local(place)
    columns = parse_columns(options.columns)
    records = read_folders([Path(run) for run in options.runs], options.params)
    for path in options.data:
        records += read_table(Path(path), columns, unit=options.unit)
    return assemble_runs(records, counts=options.params, unit=options.unit)


def fit_of(options: Any, runs: Runs) -> Fitted:
    """Fit the law that the options describe."""
    from lit_pretrain.scaling.fitted import fit_runs, fit_warnings

    fitted = fit_runs(
        runs,
        options.law,
        kind=options.loss,
        delta=options.delta,
        drop_highest=options.drop_highest,
        draws=options.bootstrap,
        seed=options.seed,
    )
    for message in fit_warnings(fitted):
        warn(message)
    return fitted


def write_text(option: str, path: str, text: str) -> None:
    """Write a result to a file, whole or not at all."""
    with writing(f"{option} {path}"):
        write_file(Path(path), text)


# Tables for the terminal.

COUNT_NAMES = {
    "total": "total parameters",
    "matmul": "matmul parameters",
    "nonembed": "non-embedding parameters",
}


def aligned(rows: Sequence[Sequence[str]], *, left: tuple[int, ...] = (0,)) -> list[str]:
    """Align rows of cells, to the left in the columns of `left` and to the right elsewhere."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def between(interval: Sequence[float] | None, digits: int = 4) -> str:
    """Format an interval."""
    return "-" if interval is None else f"{interval[0]:.{digits}g} to {interval[1]:.{digits}g}"


def big(value: float) -> str:
    """Format a number of parameters or tokens with a letter for its size."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def big_between(interval: Sequence[float] | None) -> str:
    """Format an interval of parameters or tokens."""
    return "-" if interval is None else f"{big(interval[0])} to {big(interval[1])}"


@dataclass
class SweepBudget:
    """One FLOP budget."""

    flops: float
    """Training FLOPs of each of its runs, with full attention, as `fit` counts them."""
    sizes: list[str] | None = None
    """Names of the sizes that spend it. Default: all."""


@dataclass(kw_only=True)
class SweepSettings(LaunchSettings):
    """Options of `lit_pretrain scaling sweep`."""

    base: list[str] = field(default_factory=list)
    """Config files of `fit` that all runs share; later ones win."""
    run: FitOptions = field(default_factory=dict)
    """More options of `fit` that all runs share, as a config has them; they override base."""
    sizes: dict[str, FitOptions] = field(default_factory=dict)
    """Name of each size → the fields of `model.net` in which its shape differs from the base."""
    budgets: list[SweepBudget] = field(default_factory=list)
    """FLOP budgets, and the sizes that spend them."""
    rule: Literal["deepseek", "step_law", "olmo", "none"] = "step_law"
    """Published rule for the batch and for AdamW's learning rate; none: the values of the base, the
    same for all sizes.
    """
    lr_factor: float = 1.0
    """Factor on the rule's learning rate for all runs, found by tuning one of them."""
    batch_factor: float = 1.0
    """Factor on the rule's batch."""


def run_config(base: Mapping[str, Any], settings: SweepSettings, run: SweepRun) -> FitOptions:
    """Build the whole config of one run, for `lit_pretrain fit --config`."""
    config = copy.deepcopy(dict(base))
    data = {"global_batch_tokens": run.batch_tokens, "micro_batch_size": run.micro_batch_size}
    merge_options(config, {"model": {"net": settings.sizes[run.size]}, "data": data})
    if settings.rule != "none":
        # Round it as the table does: a rule that holds to within a factor needs no sixteen digits.
        merge_options(
            config, {"model": {"optimizer": {"init_args": {"lr": float(f"{run.lr:.4g}")}}}}
        )
    return config | {"name": run.name, "runs": settings.out, "max_steps": run.steps}
