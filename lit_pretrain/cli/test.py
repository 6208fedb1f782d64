"""Measure a finished run on its data's test split, in nats per token and bits per byte."""

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain test`."""
    from lit_pretrain.cli.validate import evaluate

    return evaluate("test", argv)


VERB = Verb(main, example="lit_pretrain test --run runs/quickstart")
