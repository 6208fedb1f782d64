"""StepLog: a callback in a file outside lit_pretrain."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepLog(Callback):
    """Write the number of each optimizer step to a file.

    Args:
        file: The file.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Add a line."""
        with self.file.open("a") as out:
            out.write(f"{trainer.global_step}\n")
