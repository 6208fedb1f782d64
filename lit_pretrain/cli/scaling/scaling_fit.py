"""`scaling fit`: fit the law that runs follow, with intervals."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import (
    COUNT_NAMES,
    add_fit,
    add_runs,
    aligned,
    between,
    big,
    fit_of,
    read_runs,
    write_text,
)

if TYPE_CHECKING:
    from lit_pretrain.scaling.fitted import Fitted

AHEAD = (1.0, 10.0, 100.0)
"""Multiples of the largest run's compute for which the table shows the optimum."""


def main(argv: list[str]) -> int:
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

    from lit_pretrain.scaling.fitted import fit_document
    from lit_pretrain.scaling.run_table import write_table

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
