"""Train on from a finished run: `--from RUN`, with the defaults of post-training."""

import time

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain posttrain`."""
    began = time.monotonic()  # imports belong to the time that a run takes
    from lit_pretrain.cli.train.run import train

    return train("posttrain", argv, began)


VERB = Verb(
    main,
    example="lit_pretrain posttrain --from runs/quickstart --config configs/posttrain/sft.yaml",
)
