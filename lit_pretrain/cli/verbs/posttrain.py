"""Train on from a finished run: `--from RUN`, with the defaults of post-training."""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain posttrain`."""
    from lit_pretrain.cli.train import train

    return train("posttrain", argv)
