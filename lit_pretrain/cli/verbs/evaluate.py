"""Measure a run: held-out loss, perplexity and bits per byte by source, and tasks of lm-evaluation-harness."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain evaluate RUN`."""
    from lit_pretrain.cli.evaluation import evaluate_run
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("evaluate", __doc__)
    parser.add_function_arguments(evaluate_run, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return evaluate_run(**options)


VERB = Verb(main, example="lit_pretrain evaluate runs/quickstart")
