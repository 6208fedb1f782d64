"""`scaling forecast`: forecast the loss of a run before it is trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import (
    COUNT_NAMES,
    add_fit,
    add_runs,
    big,
    big_between,
    fit_of,
    read_runs,
)

if TYPE_CHECKING:
    from lit_pretrain.scaling.fitted import StoredFit
    from lit_pretrain.scaling.forecast import Forecast, Interval


def main(argv: list[str]) -> int:
    """Run `lit_pretrain scaling forecast`."""
    parser = make_parser(
        "scaling forecast",
        "Forecast the loss of a run from a fit, from runs, or from a published law.",
    )
    add_runs(parser)
    add_fit(parser, bootstrap=1000)
    parser.add_argument(
        "--fit", type=str, default=None, help="A fit kept by `scaling fit --out`, in place of runs."
    )
    parser.add_argument(
        "--published",
        type=str,
        default=None,
        help="A published law by name, in place of runs: besiroglu, hoffmann, ...",
    )
    parser.add_argument(
        "--n",
        type=float,
        default=None,
        help="Parameters of the run, counted as the law counts them.",
    )
    parser.add_argument("--d", type=float, default=None, help="Training tokens of the run.")
    parser.add_argument(
        "--flops",
        type=float,
        default=None,
        help="6 N D. Alone: the compute-optimal run; or with one of --n and --d.",
    )
    parser.add_argument(
        "--unique",
        type=float,
        default=None,
        help="Distinct training tokens, for a law of repeated data.",
    )
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    options = parser.parse_args(argv)

    import json

    from lit_pretrain.scaling.forecast import MODEL_ERROR, forecast

    kept, notes = _law(options)
    found = forecast(
        kept.law,
        n=options.n,
        d=options.d,
        flops=options.flops,
        unique=options.unique,
        largest_compute=kept.largest_compute,
        draws=kept.draws,
        residuals=kept.residuals,
        seed=options.seed,
    )
    notes = (
        [MODEL_ERROR, *notes]
        if found.ci95 is not None
        else ["no interval: there are no resamples", *notes]
    )
    if found.far:
        notes.insert(
            0,
            f"extrapolation: {found.beyond:.3g} times the largest fitted compute"
            f" ({kept.largest_compute:.3g} FLOPs)",
        )
    if options.json:
        result = {
            **vars(found),
            "extrapolation": found.far,
            "law": kept.law.form,
            "params_counted": kept.counts,
            "unit": kept.unit,
            "notes": notes,
        }
        print(json.dumps(result, indent=1))
    else:
        sys.stdout.write(forecast_table(found, kept, notes))
    return 0


def forecast_table(found: Forecast, kept: StoredFit, notes: Sequence[str]) -> str:
    """Format a forecast as text."""
    from lit_pretrain.scaling.runs import UNIT_TEXT

    # A published law may be of losses in a unit of its own.
    unit = next((text for name, text in UNIT_TEXT.items() if name == kept.unit), kept.unit)

    def around(interval: Interval | None) -> str:
        return f" ({big_between(interval)})" if interval is not None else ""

    lines = [
        (
            f"N = {big(found.n)}{around(found.n_ci95)}"
            f" {COUNT_NAMES.get(kept.counts, 'parameters')}, D ="
            f" {big(found.d)}{around(found.d_ci95)} tokens, {found.d / found.n:.3g} tokens"
            f" per parameter, {found.c:.4g} FLOPs, {found.beyond:.3g} times the largest"
            " fitted compute"
        ),
        f"loss {found.loss:.4f} {unit}",
    ]
    for interval, text in (
        (found.ci95, "95 % interval of the law"),
        (found.run95, "95 % interval of one run"),
    ):
        if interval is not None:
            lines.append(f"  {text}: {interval[0]:.4f} to {interval[1]:.4f}")
    return "\n".join([*lines, *(f"note: {note}" for note in notes)]) + "\n"


def _law(options: Any) -> tuple[StoredFit, list[str]]:
    """Find the law that the options name, and the notes to print with it."""
    import numpy as np

    from lit_pretrain.errors import UserError
    from lit_pretrain.scaling.fitted import StoredFit, normal_draws, read_document
    from lit_pretrain.scaling.law import coordinates
    from lit_pretrain.scaling.published import published_law as published

    given = [
        name
        for name, value in (
            ("runs", options.runs or options.data),
            ("--fit", options.fit),
            ("--published", options.published),
        )
        if value
    ]
    if len(given) != 1:
        raise UserError(
            "one law is needed, from runs (or --data), --fit or --published; given:"
            f" {', '.join(given) or 'none'}"
        )
    if options.fit:
        return read_document(Path(options.fit)), []
    if options.published:
        law = published(options.published)
        covariance, draws = law.log_covariance, None
        if covariance is not None and options.bootstrap:
            draws = normal_draws(
                law, coordinates(law), covariance, draws=options.bootstrap, seed=options.seed
            )
        kept = StoredFit(law, draws, np.empty(0), law.largest_compute, law.counts, law.unit)
        return kept, [f"{law.name}: {law.citation}. {law.note}"]
    fitted = fit_of(options, read_runs(options))
    runs = fitted.runs
    return (
        StoredFit(
            fitted.fit.law,
            fitted.draws,
            fitted.fit.residuals,
            runs.largest_compute,
            runs.counts,
            runs.unit,
        ),
        [],
    )
