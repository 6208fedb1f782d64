"""Measure a finished run on the test split of its data, in nats per token and bits per byte."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain test`."""
    from lit_pretrain.cli.evaluate import evaluate

    return evaluate("test", argv)


VERB = Verb(main, example="lit_pretrain test --run runs/quickstart")
