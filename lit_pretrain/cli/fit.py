"""Train any stage: pretraining by default."""

import time

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain fit`."""
    began = time.monotonic()  # imports belong to the time that a run takes
    from lit_pretrain.cli.train.run import train

    return train("fit", argv, began)


VERB = Verb(
    main,
    example="lit_pretrain fit --config configs/pretrain/quickstart.yaml --name quickstart",
)
