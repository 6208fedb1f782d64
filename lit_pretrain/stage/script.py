"""Script: a stage under a Trainer that a script has made, without a verb and a run folder."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import lightning as L

from lit_pretrain.checkpoint.layout import Standalone
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig


def check_trainer(trainer: L.Trainer) -> Any:
    """Refuse settings of a Trainer under which a stage would not do what they say.

    Returns:
        The data module.

    Raises:
        UserError: Names the setting and what to set instead.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise UserError(
            "a stage reads more of its data than batches: give it as a module,"
            " trainer.fit(stage, datamodule=data)"
        )
    if trainer.max_steps < 1:
        raise UserError(
            "the schedule needs the length of the run: give Trainer(max_steps=...), in optimizer"
            " steps"
        )
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}: a batch of Lightning is a"
            " whole optimizer step already; set global_batch_tokens and micro_batch_size of the"
            " data, and leave it out"
        )
    if trainer.gradient_clip_val is not None:
        raise UserError(
            f"gradient_clip_val={trainer.gradient_clip_val} has no effect on a stage: set"
            " Stage(clip_norm=...)"
        )
    if str(trainer.precision).startswith("16"):
        raise UserError(
            f"precision={trainer.precision!r}: fp16 is not supported; use 'bf16-mixed' or '32-true'"
        )
    connector = trainer._accelerator_connector  # the one place that knows
    if trainer.world_size > 1 and connector.use_distributed_sampler:
        raise UserError(
            "each rank reads its share of every step by itself: give"
            " Trainer(use_distributed_sampler=False)"
        )
    return data


def standalone(net: ModelConfig, data: Any) -> Standalone:
    """Describe the network of a checkpoint that lies in no run folder.

    Args:
        net: Its shape.
        data: The data module, which can write what the network needs to read and write text.
    """
    with tempfile.TemporaryDirectory() as folder:
        data.save(Path(folder))
        files = {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}
    return {"net": dataclasses.asdict(net), "files": files}
