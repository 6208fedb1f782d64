"""Adapt a finished run to a task: `--from RUN`, with the defaults of fine-tuning."""

import time

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain finetune`."""
    began = time.monotonic()  # imports belong to the time that a run takes
    from lit_pretrain.cli.train.run import train

    return train("finetune", argv, began)


VERB = Verb(
    main,
    example="lit_pretrain finetune --from runs/quickstart --max_steps 100 --name tuned",
)
