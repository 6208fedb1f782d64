"""Compare runs: configs, losses at equal budgets, and the same held-out documents in pairs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.cli.command.load_run import Weights
from lit_pretrain.cli.command.verb import Verb, print_findings
from lit_pretrain.errors import UserError, warn

if TYPE_CHECKING:
    from lit_pretrain.cli.compare.contenders import RunComparison


def compare_runs(
    places: list[str],
    *,
    baseline: str | None = None,
    checkpoint: str = "last",
    documents: bool = True,
    data: str | None = None,
    split: str = "validation",
    tokens: int | None = 262_144,
    seq_len: int | None = None,
    resamples: int = 2000,
    seed: int = 0,
    device: str = "auto",
    weights: Weights = "trained",
) -> RunComparison:
    """Compare runs with each other.

    Args:
        places: Run folders, checkpoints, and folders of runs.
        baseline: The run that the others are compared with; None: the first.
        checkpoint: For run folders: last or best.
        documents: Whether to measure the runs on held-out documents.
        data: Prepared text that holds the documents; None: that of the baseline.
        split: validation or test.
        tokens: At most this many tokens of them; None for all.
        seq_len: Longest context in tokens; None: the shortest rows that a run has trained on.
        resamples: Number of bootstrap resamples; 0 for no intervals.
        seed: Seed of the bootstrap.
        device: Where the networks run.
        weights: The runs' last ones, or their moving averages.

    Raises:
        UserError: A place is no run, there are not two of them, or a setting is out of range.
    """
    from lit_pretrain.cli.compare.contenders import (
        RunComparison,
        budgets_of,
        config_differences,
        find_contenders,
        measure,
    )

    if resamples < 100 and resamples != 0:
        raise UserError(
            f"--resamples {resamples}: an interval needs at least 100, 2000 are usual; 0 makes none"
        )
    for name, value in (("tokens", tokens), ("seq_len", seq_len)):
        if value is not None and value < 2:
            raise UserError(f"--{name} {value} must be at least 2")
    contenders = find_contenders(places, baseline=baseline, checkpoint=checkpoint)
    budgets, notes = budgets_of(contenders)
    compared = None
    if documents:
        compared, more = measure(
            contenders, data=data, split=split, tokens=tokens, seq_len=seq_len,
            resamples=resamples, seed=seed, device=device, weights=weights,
        )  # fmt: skip
        notes += more
    return RunComparison(contenders, config_differences(contenders), budgets, compared, notes)


def main(argv: list[str]) -> int:
    """Run `lit_pretrain compare RUN RUN ...`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("compare", __doc__)
    parser.add_argument(
        "places",
        type=str,
        nargs="+",
        help="Run folders, single checkpoints, or folders of runs such as that of a sweep.",
    )
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        help="The run that the others are compared with. Default: the first.",
    )
    parser.add_argument("--checkpoint", default="last", help="For run folders: last or best.")
    parser.add_argument(
        "--documents",
        type=bool,
        default=True,
        help="Measure the runs on held-out documents; false compares only what they have recorded.",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="Prepared text whose held-out documents are read. Default: that of the baseline.",
    )
    parser.add_argument("--split", default="validation", help="validation or test.")
    parser.add_argument(
        "--tokens",
        type=int | None,
        default=262_144,
        help="At most this many tokens of documents, spread evenly over the sources; null: all.",
    )
    parser.add_argument(
        "--seq_len",
        type=int | None,
        default=None,
        help="Longest context in tokens. Default: the shortest rows that a run has trained on.",
    )
    parser.add_argument(
        "--resamples", type=int, default=2000, help="Resamples for the intervals; 0 for none."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the resampling.")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu, cuda or mps.")
    parser.add_argument(
        "--weights",
        type=Weights,
        default="trained",
        help="The weights as training left them, or their moving averages (model.ema_half_life).",
    )
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    parser.add_argument(
        "--figure", type=str | None, default=None, help="Draw the comparison to this PNG."
    )
    parser.add_argument(
        "--tensorboard",
        type=str | None,
        default=None,
        help="Write table and picture to TensorBoard event files in this folder.",
    )
    options = parser.parse_args(argv)

    from lit_pretrain.files import check_output

    if options.split not in ("validation", "test"):
        raise UserError(f"--split {options.split} must be validation or test")
    if options.figure is not None:
        check_output(options.figure, f"--figure={options.figure}")
    if options.tensorboard is not None:
        check_output(Path(options.tensorboard) / "events", f"--tensorboard={options.tensorboard}")
    given = vars(options)
    chosen = ("baseline", "checkpoint", "documents", "data", "split", "tokens", "seq_len",
              "resamples", "seed", "device", "weights")  # fmt: skip
    findings = compare_runs(options.places, **{name: given[name] for name in chosen})

    from lit_pretrain.cli.compare.comparison_view import comparison_record, comparison_table

    for note in findings.notes:
        warn(note)
    print_findings(
        comparison_record(findings), lambda: comparison_table(findings), as_json=options.json
    )
    for line in write_pictures(findings, options.figure, options.tensorboard):
        print(line, file=sys.stderr if options.json else sys.stdout)
    return 0


def write_pictures(
    findings: RunComparison, figure: str | None, tensorboard: str | None
) -> list[str]:
    """Draw the comparison to a PNG and to TensorBoard, and say what was written."""
    if figure is None and tensorboard is None:
        return []
    import io

    from lit_pretrain.cli.compare.comparison_view import comparison_table, draw_comparison
    from lit_pretrain.files import write_file, writing

    drawn, lines = draw_comparison(findings), []
    if figure is not None:
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png")
        with writing(f"--figure={figure}"):
            write_file(Path(figure), buffer.getvalue())
        lines.append(f"drawn: {figure}")
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        with writing(f"--tensorboard={tensorboard}"), SummaryWriter(tensorboard) as writer:
            writer.add_text("comparison/table", f"```\n{comparison_table(findings)}\n```")
            writer.add_figure("comparison/overview", drawn)
        lines.append(f"written: {tensorboard} (tensorboard --logdir {tensorboard})")
    return lines


VERB = Verb(main, example="lit_pretrain compare runs/quickstart runs/llama")
