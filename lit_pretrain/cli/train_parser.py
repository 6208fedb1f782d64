"""TrainParser: the parser of the verbs that need a Trainer."""

from lightning.pytorch.cli import LightningArgumentParser

from lit_pretrain.cli.parser import Suggesting


class TrainParser(Suggesting, LightningArgumentParser):  # type: ignore[misc]  # as VerbParser
    """LightningCLI's parser with hints for misspelt names."""
