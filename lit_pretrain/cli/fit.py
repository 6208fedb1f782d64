"""Train any stage: pretraining by default."""

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain fit`."""
    from lit_pretrain.cli.train.run import train

    return train("fit", argv)


VERB = Verb(
    main,
    example="lit_pretrain fit --config configs/pretrain/quickstart.yaml --name quickstart",
)
