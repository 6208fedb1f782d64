"""Checkpoint input and output: tensors and primitives only, straight to the path that was asked for, then fsync.

Lightning's own plugin writes to the temporary directory and moves: across file systems a kill leaves a torn file
under the final name. Here the caller names a scratch path beside the final one and renames it when everybody is done.
"""

import os
from pathlib import Path
from typing import Any, Optional

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lit_pretrain.checkpoint.consolidate import consolidated


class PlainCheckpointIO(CheckpointIO):
    """One file per checkpoint, loaded with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Optional[Any] = None) -> None:
        """Write a checkpoint and wait until it is on the disk."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Optional[bool] = True) -> dict[str, Any]:
        """Read a checkpoint; arbitrary objects in it are refused. A sharded one is put together for strategies that do not shard."""
        if Path(path).is_dir():
            return consolidated(Path(path))
        loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
