"""Strategy: how a network is laid over the devices of a run, by the name that its config gives."""

from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy, Strategy

from lit_pretrain.parallel.fsdp import ShardedStrategy

STRATEGIES = ("auto", "ddp", "fsdp", "ddp_find_unused_parameters_true", "single_device")
"""Names that `trainer.strategy` may have; a strategy of one's own is given by its class path."""


def sharding_of(strategy: Any, devices: int) -> Literal["none", "ddp", "fsdp"]:
    """Say how a strategy divides weights, gradients and moments, for a plan of their memory.

    Args:
        strategy: `trainer.strategy` of a parsed config: a name, or a class path with arguments.
        devices: Devices of the run over all machines.
    """
    name = str(strategy if isinstance(strategy, str) else strategy["class_path"]).lower()
    if "fsdp" in name or "modelparallel" in name or "sharded" in name:
        return "fsdp"
    return "ddp" if devices > 1 else "none"


def make_strategy(strategy: Any, devices: int, *, sharded_checkpoints: bool) -> str | Strategy:
    """Make the strategy that Lightning's Trainer gets.

    Args:
        strategy: `trainer.strategy`, by name or as an instance.
        devices: Devices of the run over all machines.
        sharded_checkpoints: Let every rank write its part of a checkpoint.
    """
    if strategy == "fsdp":
        return ShardedStrategy(
            data_parallel_size=devices,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
        )
    if strategy == "ddp" or (strategy == "auto" and devices > 1):
        # The only buffers are tables that every rank derives by itself.
        return DDPStrategy(broadcast_buffers=False)
    found: str | Strategy = strategy
    return found
