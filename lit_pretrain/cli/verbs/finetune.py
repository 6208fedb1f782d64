"""Adapt a finished run to a task: `--from RUN`, with the defaults of fine-tuning."""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain finetune`."""
    from lit_pretrain.cli.train import train

    return train("finetune", argv)
