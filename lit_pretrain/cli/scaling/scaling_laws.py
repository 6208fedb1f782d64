"""`scaling fit` and `scaling isoflop`: the law of finished runs, and the best model sizes."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any, TypedDict

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import (
    COUNT_NAMES,
    add_bootstrap,
    add_fit,
    add_runs,
    aligned,
    between,
    big,
    big_between,
    fit_of,
    read_runs,
    write_text,
)
from lit_pretrain.errors import warn

if TYPE_CHECKING:
    from lit_pretrain.scaling.fitted import Fitted
    from lit_pretrain.scaling.isoflop import IsoFlop
    from lit_pretrain.scaling.runs import Counts, Runs, Unit


AHEAD = (1.0, 10.0, 100.0)
"""Multiples of the largest run's compute for which the table shows the optimum."""


def fit_law(argv: list[str]) -> int:
    """Run `lit_pretrain scaling fit`."""
    parser = make_parser("scaling fit", "Fit a scaling law to run folders or to a table of runs.")
    add_runs(parser)
    add_fit(parser, bootstrap=1000)
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="Keep everything, the resamples too, in this JSON file for `scaling forecast --fit`.",
    )
    parser.add_argument(
        "--table", type=str, default=None, help="Write the runs to this .csv, which `--data` reads."
    )
    options = parser.parse_args(argv)

    import json

    from lit_pretrain.files import check_output
    from lit_pretrain.scaling.fitted import fit_document
    from lit_pretrain.scaling.run_table import write_table

    for option, place in (("--table", options.table), ("--out", options.out)):
        if place:
            check_output(place, f"{option} {place}")
    runs = read_runs(options)
    if options.table:
        write_text("--table", options.table, write_table(runs))
    fitted = fit_of(options, runs)
    if options.out:
        write_text("--out", options.out, json.dumps(fit_document(fitted, with_draws=True)) + "\n")
    sys.stdout.write(
        json.dumps(fit_document(fitted), indent=1) + "\n" if options.json else fit_table(fitted)
    )
    return 0


def fit_table(fitted: Fitted) -> str:
    """Format a fit as a table."""
    from lit_pretrain.scaling.fitted import fit_document
    from lit_pretrain.scaling.runs import UNIT_TEXT

    found, law, runs = fit_document(fitted), fitted.fit.law, fitted.runs
    intervals = found["ci95"] or {}
    rows: list[tuple[str, str, str]] = [("", "value", "95 % interval")]
    rows += [
        (name, f"{value:.6g}", between(intervals.get(name))) for name, value in law.params.items()
    ]
    exponents = found["optimum"]["ci95"] or {}
    rows += [
        (
            f"{name} ({symbol} ~ C^{name})",
            f"{getattr(law.exponents, name):.4f}",
            between(exponents.get(name)),
        )
        for name, symbol in (("a", "N*"), ("b", "D*"))
    ]
    objective = (
        f"Huber({fitted.delta:g})" if fitted.kind == "huber" else "least absolute deviations"
    )
    resampled = fitted.draws
    lines = [
        (
            f"{law.form} law: {len(runs)}"
            f" runs{f', {len(fitted.dropped)} dropped' if fitted.dropped else ''}; N counts"
            f" {COUNT_NAMES[runs.counts]}; loss in {UNIT_TEXT[runs.unit]}"
        ),
        (
            f"objective {found['objective']:.8g} ({objective} on ln L), residuals"
            f" {found['residual_rms']:.3%} rms"
        ),
        "",
        *aligned(rows),
        "",
        *aligned(
            [("compute", "FLOPs", "N*", "D*", "D*/N*", "loss")]
            + [
                (
                    "largest run" if times == 1 else f"{times:g} times it",
                    f"{times * runs.largest_compute:.3g}",
                    big(best.n),
                    big(best.d),
                    f"{best.d / best.n:.3g}",
                    f"{float(law.loss(best.n, best.d)):.4f}",
                )
                for times in AHEAD
                for best in [law.optimum(times * runs.largest_compute)]
            ]
        ),
        "",
    ]
    if resampled is None:
        lines.append("no intervals: --bootstrap 0")
    else:
        lines.append(
            f"intervals: percentiles of {len(resampled.laws):,} bootstrap resamples (seed"
            f" {fitted.seed})"
            + (f"; {resampled.failed} more ended in no usable law" if resampled.failed else "")
            + "; they omit the error of the law's form"
        )
    return "\n".join(lines) + "\n"


def find_optimum(argv: list[str]) -> int:
    """Run `lit_pretrain scaling isoflop`."""
    parser = make_parser(
        "scaling isoflop",
        "Find the best model size at each FLOP budget, and the exponents of N* and D*.",
    )
    add_runs(parser)
    add_isoflop(parser)
    add_bootstrap(parser, 1000)
    parser.add_argument(
        "--flops",
        type=float,
        nargs="+",
        default=[],
        help="Budgets to give N* and D* for, besides those of the runs.",
    )
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    options = parser.parse_args(argv)

    import json

    from lit_pretrain.errors import UserError

    if any(not 0 < c < float("inf") for c in options.flops):
        raise UserError(
            f"--flops {' '.join(f'{c:g}' for c in options.flops)}: budgets must be positive and"
            " finite"
        )
    runs = read_runs(options)
    found = isoflop_of(options, runs)
    result = isoflop_document(found, runs, options.flops)
    sys.stdout.write(
        json.dumps(result, indent=1) + "\n" if options.json else isoflop_table(result, found)
    )
    return 0


def add_isoflop(parser: Any) -> None:
    """Add the options that say which runs the parabolas are fitted to."""
    parser.add_argument(
        "--within",
        type=float,
        default=None,
        help="Fit each parabola only to sizes within this factor of its minimum. Default: to all.",
    )
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        default=[],
        help="Use only the budgets at these FLOPs (within 10 %). Default: all.",
    )
    parser.add_argument(
        "--skip_bad_budgets",
        "--skip-bad-budgets",
        action="store_true",
        help=(
            "Leave out budgets that have no minimum (at the edge of its sweep, too few sizes, …),"
            " with the reasons. Default: refuse the runs."
        ),
    )


def isoflop_of(options: Any, runs: Runs) -> IsoFlop:
    """Analyse runs at fixed budgets as the options say, and warn about what is uncertain."""
    from lit_pretrain.scaling.isoflop import bias_warning, isoflop

    found = isoflop(
        runs,
        within=options.within,
        only=options.budgets,
        skip_bad_budgets=options.skip_bad_budgets,
        draws=options.bootstrap,
        seed=options.seed,
    )
    bias = bias_warning(found)
    found = dataclasses.replace(
        found, warnings=(*found.warnings, *([bias] if bias is not None else []))
    )
    for bad in found.skipped:
        warn(f"left out: {bad.reason}")
    for message in found.warnings:
        warn(message)
    return found


class BudgetRecord(TypedDict):
    """The parabola of one FLOP budget, and its minimum."""

    c: float
    n: float
    d: float
    loss: float
    runs: int
    n_range: list[float]
    parabola_in_ln_n: list[float]
    residual_rms: float


class SkippedRecord(TypedDict):
    """A FLOP budget that was left out."""

    c: float
    runs: int
    reason: str


class OptimumRecord(TypedDict):
    """The best size for a number of FLOPs."""

    c: float
    n: float
    d: float
    ci95: dict[str, tuple[float, float] | None]
    times_largest: float
    """FLOPs, in those of the largest budget."""


class IsoFlopDocument(TypedDict):
    """An IsoFLOP analysis, as `--json` prints it."""

    optimum: dict[str, object]
    budgets: list[BudgetRecord]
    skipped: list[SkippedRecord]
    at: list[OptimumRecord]
    params_counted: Counts
    unit: Unit
    n_runs: int
    bootstrap: dict[str, int]
    warnings: list[str]


def isoflop_document(found: IsoFlop, runs: Runs, flops: list[float]) -> IsoFlopDocument:
    """Describe an IsoFLOP analysis completely in plain JSON values."""
    return {
        "optimum": {
            "a": found.n_line.slope,
            "b": found.d_line.slope,
            "ci95": {"a": found.interval_of("a"), "b": found.interval_of("b")},
            "ci95_of_line": {"a": found.line_interval},
        },
        "budgets": [
            {
                "c": m.c,
                "n": m.n,
                "d": m.d,
                "loss": m.loss,
                "runs": len(m.runs),
                "n_range": [float(m.runs.n.min()), float(m.runs.n.max())],
                "parabola_in_ln_n": list(m.parabola),
                "residual_rms": float((m.residuals**2).mean() ** 0.5),
            }
            for m in found.minima
        ],
        "skipped": [{"c": bad.c, "runs": bad.runs, "reason": bad.reason} for bad in found.skipped],
        "at": [
            {
                "c": c,
                "n": found.n_line.at(c),
                "d": found.d_line.at(c),
                "ci95": {"n": found.optimum_interval("n", c), "d": found.optimum_interval("d", c)},
                "times_largest": c / found.minima[-1].c,
            }
            for c in flops
        ],
        "params_counted": runs.counts,
        "unit": runs.unit,
        "n_runs": sum(len(m.runs) for m in found.minima),
        "bootstrap": {"redraws": len(found.draws), "discarded": found.discarded},
        "warnings": list(found.warnings),
    }


def isoflop_table(result: IsoFlopDocument, found: IsoFlop) -> str:
    """Format an IsoFLOP analysis as tables."""
    from lit_pretrain.scaling.forecast import FAR
    from lit_pretrain.scaling.runs import UNIT_TEXT

    rows: list[tuple[str, ...]] = [
        ("FLOPs", "runs", "sizes", "N*", "D*", "D*/N*", "loss", "residuals")
    ]
    rows += [
        (
            f"{m.c:.3g}",
            str(len(m.runs)),
            big_between((float(m.runs.n.min()), float(m.runs.n.max()))),
            big(m.n),
            big(m.d),
            f"{m.d / m.n:.3g}",
            f"{m.loss:.4f}",
            f"{(m.residuals**2).mean() ** 0.5:.2g}",
        )
        for m in found.minima
    ]
    lines = [
        (
            f"{result['n_runs']} runs at {len(found.minima)} budgets; N counts"
            f" {COUNT_NAMES[result['params_counted']]}; loss in {UNIT_TEXT[result['unit']]}"
        ),
        "",
        *aligned(rows),
        "",
        *aligned(
            [
                ("", "value", "95 % interval"),
                ("a (N* ~ C^a)", f"{found.n_line.slope:.4f}", between(found.interval_of("a"))),
                ("b (D* ~ C^b)", f"{found.d_line.slope:.4f}", between(found.interval_of("b"))),
            ]
        ),
        (
            f"a from the scatter of the minima about the line alone: {between(found.line_interval)}"
            f" (Student's t, {len(found.minima) - 2} degrees of freedom)"
        ),
    ]
    if not len(found.draws):
        lines.append(
            "no bootstrap intervals: "
            + (
                "as many parameters as runs"
                if len(found.minima) * 3 >= result["n_runs"]
                else "--bootstrap 0"
            )
        )
    else:
        lines.append(
            f"intervals: percentiles of {len(found.draws):,} redraws of the parabolas' residuals"
            + (f"; {found.discarded} more lost a minimum" if found.discarded else "")
        )
    if found.skipped:
        lines += [
            "",
            f"left out: {len(found.skipped)} of {len(found.skipped) + len(found.minima)} budgets",
        ]
        lines += [f"  {bad.reason}" for bad in found.skipped]
    if result["at"]:
        rows = [("FLOPs", "N*", "95 %", "D*", "95 %", "D*/N*", "of largest budget")]
        rows += [
            (
                f"{at['c']:.3g}",
                big(at["n"]),
                big_between(at["ci95"]["n"]),
                big(at["d"]),
                big_between(at["ci95"]["d"]),
                f"{at['d'] / at['n']:.3g}",
                f"×{at['times_largest']:.3g}"
                + (" (extrapolated)" if at["times_largest"] > FAR else ""),
            )
            for at in result["at"]
        ]
        lines += ["", *aligned(rows)]
    return "\n".join(lines) + "\n"
