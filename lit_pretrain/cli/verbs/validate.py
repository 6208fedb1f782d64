"""Measure a finished run on the validation split of its data, in nats per token and bits per byte."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain validate`."""
    from lit_pretrain.cli.evaluate import evaluate

    return evaluate("validate", argv)


VERB = Verb(main, example="lit_pretrain validate --run runs/quickstart")
