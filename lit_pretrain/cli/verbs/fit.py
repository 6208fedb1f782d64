"""Train any stage: pretraining by default."""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain fit`."""
    from lit_pretrain.cli.train import train

    return train("fit", argv)
