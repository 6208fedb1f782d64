"""Compute a step of a run again, and say what happened in it."""

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain replay RUN --step K`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("replay", __doc__)
    parser.add_argument(
        "run", type=str, help="The run's folder, or its address; nothing is written there."
    )
    parser.add_argument(
        "--step",
        type=int,
        required=True,
        help=(
            "The optimizer step, counted from 0 as in `inspect order`. The newest sound checkpoint"
            " from before it is restored, and training goes on from there."
        ),
    )
    parser.add_argument(
        "--report",
        type=str | None,
        default=None,
        help=(
            "Also write the report to this file, with all documents: Markdown (.md) or JSON"
            " (.json)."
        ),
    )
    parser.add_argument(
        "--documents", type=int, default=10, help="How many documents and tokens to print."
    )
    parser.add_argument(
        "--before_rewind",
        type=bool,
        default=False,
        help="Look at the step as it was before the run went back from it, such as a spike.",
    )
    parser.add_argument(
        "--path",
        type=str | None,
        default=None,
        help="The prepared dataset's directory, if it has moved since the run.",
    )
    parser.add_argument(
        "--devices",
        type=int | None,
        default=None,
        help="Take another number of devices than the run; losses then differ in the last bits.",
    )
    parser.add_argument(
        "--trust",
        type=bool,
        default=False,
        help="Import classes that the run's config names and that are not of lit_pretrain.",
    )
    options = parser.parse_args(argv)
    from lit_pretrain.cli.replay.replay_run import Request, replay

    return replay(
        Request(
            run=options.run,
            step=options.step,
            report=options.report,
            shown=options.documents,
            before_rewind=options.before_rewind,
            path=options.path,
            devices=options.devices,
            trust=options.trust,
        )
    )


VERB = Verb(main, example="lit_pretrain replay runs/quickstart --step 75")
