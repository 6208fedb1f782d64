"""Trainer: Lightning's, with what a run decides and what is left to its config."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from lit_pretrain.callbacks.checkpoint_io import PlainCheckpointIO
from lit_pretrain.checkpoint.contract import KEY
from lit_pretrain.checkpoint.weights import read_metadata
from lit_pretrain.cli.run_place import RunPlace
from lit_pretrain.errors import UserError
from lit_pretrain.report.folder import TENSORBOARD
from lit_pretrain.stage.sharded_strategy import ShardedStrategy

# Ours to decide, because a stage counts optimizer steps and normalises and clips by itself.
OWNED = {
    "accumulate_grad_batches": (1, "accumulation is derived from data.global_batch_tokens and data.micro_batch_size"),
    "gradient_clip_val": (None, "set model.clip_norm"),
    "val_check_interval": (None, "set --validate_every (optimizer steps)"),
    "check_val_every_n_epoch": (1, "set --validate_every (optimizer steps)"),
    "max_epochs": (None, "set --max_steps, --max_epochs, --max_tokens or --max_flops"),
    "max_steps": (-1, "set --max_steps, --max_tokens or --max_flops"),
    "limit_train_batches": (None, "set --max_steps, --max_tokens or --max_flops"),
    "limit_val_batches": (None, "set data.val_tokens, and --validate_every"),
    "log_every_n_steps": (None, "set --log_every"),
    "enable_progress_bar": (None, "progress is one line, live on a terminal and plain elsewhere"),
    "default_root_dir": (None, "set --runs and --name"),
}


def check_owned(trainer: Namespace) -> None:
    """Refuse what a config says of the Trainer that is not its to say.

    Args:
        trainer: The Trainer's part of a parsed config.

    Raises:
        UserError: Names the setting and what to set instead.
    """
    for name, (default, instead) in OWNED.items():
        if trainer[name] not in (default, None):
            raise UserError(f"trainer.{name}={trainer[name]!r} is not for you to set: {instead}")


def world_of(trainer: Namespace) -> int:
    """Devices of a run over all of its machines, known before there is a Trainer."""
    devices = trainer.devices
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        local = len(devices)
    elif isinstance(devices, int) and devices > 0:
        local = devices
    else:
        local = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else 1
    return local * int(trainer.num_nodes)


def make_trainer(config: Namespace, instantiated: Mapping[str, Any], place: RunPlace, callbacks: Sequence[Callback]) -> Trainer:
    """The Trainer of a run.

    Args:
        config: Resolved config.
        instantiated: The Trainer's part of it, with its objects made.
        place: Where the run lives.
        callbacks: Ours; those of the config come after them.

    Raises:
        UserError: Lightning refuses the settings.
    """
    every = config.validate_every
    options = dict(instantiated) | {
        "max_steps": config.max_steps,
        "max_epochs": -1,
        "val_check_interval": every if every else config.max_steps,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(place.folder),
        "strategy": _strategy(config),
    }
    if options["logger"] in (None, True):
        options["logger"] = TensorBoardLogger(
            str(place.folder), name="", version=TENSORBOARD, default_hp_metric=False,
            purge_step=read_metadata(place.checkpoint)[KEY]["step"] + 1 if place.checkpoint else None,
        )  # fmt: skip
    options["callbacks"] = [*callbacks, *list(options["callbacks"] or [])]
    options["plugins"] = [*_listed(options["plugins"]), PlainCheckpointIO()]
    try:
        return Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ModuleNotFoundError) as error:
        raise UserError(f"the Trainer refuses its settings: {error}") from error


def _strategy(config: Namespace) -> Any:
    name = config.trainer.strategy
    world = world_of(config.trainer)
    if name == "fsdp":
        return ShardedStrategy(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=config.sharded_checkpoints)
    if name == "ddp" or (name == "auto" and world > 1):
        # The only buffers are tables that every rank derives by itself.
        return DDPStrategy(broadcast_buffers=False)
    return name


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
