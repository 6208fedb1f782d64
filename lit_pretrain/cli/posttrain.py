"""Train on from a finished run: `--from RUN`, with the defaults of post-training."""

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain posttrain`."""
    from lit_pretrain.cli.train.run import train

    return train("posttrain", argv)


VERB = Verb(
    main,
    example="lit_pretrain posttrain --from runs/quickstart --config configs/posttrain/sft.yaml",
)
