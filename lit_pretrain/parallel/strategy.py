"""Strategy: how a network is laid over the devices of a run, by the name that its config gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.gather import RowParts
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.parallel.mesh import Mesh, Parallel, has_axis, weights_mesh
from lit_pretrain.step_size import MeshSizes


def shard_(
    net: Transformer, mesh: DeviceMesh, *, device: torch.device, fill: Callable[[Transformer], None]
) -> Transformer:
    """Lay a network out over a mesh: shard each block and the root, and give the parts weights.

    The whole network is filled on rank 0 and broadcast part by part: random initialisation of
    DTensors draws the same numbers on every rank's own part, which is not the initialisation that
    was asked for.

    Args:
        net: A network on the meta device.
        mesh: `Mesh.whole`, or Lightning's mesh with the dimensions data_parallel and
            tensor_parallel.
        device: Where the parts live.
        fill: Gives a whole network its first weights.
    """
    data = weights_mesh(mesh)
    if has_axis(mesh, "tp"):
        # Its imports take a while, which only those who use it wait for.
        from lit_pretrain.parallel.tensor import split_

        split_(net, mesh["tp"])
    # FSDP gathers what it is given as one piece: a block at a time, and not the whole network.
    for block in net.blocks:
        fully_shard(block, mesh=data)
    # The head is used right after the root's forward: keeping the root gathered saves gathering it
    # twice.
    fully_shard(net, mesh=data, reshard_after_forward=False)
    # Only the parts of this rank take memory on the device; rank 0 alone fills a whole network.
    net.to_empty(device=device)
    whole = {}
    if torch.distributed.get_rank() == 0:
        with torch.device("cpu"):
            full = Transformer(net.config)
        fill(full)
        whole = full.state_dict()
    set_model_state_dict(
        net, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    )
    return net


SHARDED = {"sharded": True}
"""Storage option that tells a checkpoint IO to write the parts that its rank holds."""


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, without its history."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def reshard_(net: nn.Module) -> None:
    """Let go of weights that a forward pass without a backward pass has left gathered.

    Until then the parameters of those modules are whole tensors without gradients, and the next
    step would read them as they were before the update.
    """
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over a mesh of our own.

    Lightning's mesh has two fixed axes. And it restores optimizer state by number: an optimizer
    counts its parameters group by group, ours groups them by role, so Lightning 2.6.6 would give
    many a moment to a wrong parameter, with an error where the shapes differ, silently where they
    do not. Here names decide.

    Args:
        parallel: How the devices are divided.
        sharded_checkpoints: Let every rank write its part of a checkpoint.
    """

    def __init__(
        self, parallel: Parallel = Parallel(), *, sharded_checkpoints: bool = False
    ) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
        )
        self.parallel = parallel
        self.mesh: Mesh
        """Made when the processes are connected."""

    @property
    def sizes(self) -> MeshSizes:
        """Return the sizes of the mesh, known before there is one."""
        return self.parallel.sizes(self.num_nodes * self.num_processes)

    def setup_environment(self) -> None:
        """Connect the processes and make their mesh."""
        # Past ModelParallelStrategy, which makes the mesh of two axes.
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        self.mesh = Mesh.make(self.sizes, self.root_device.type)
        self._device_mesh = self.mesh.whole
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Say which rows are whose: ranks that differ in cp or tp alone read the same."""
        batch = self.mesh.batch
        return {"num_replicas": batch.size(), "rank": batch.get_local_rank()}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Collect the weights: the parts of this rank where they lie, or all of them on rank 0."""
        if not self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        assert self.model is not None
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Collect the state of an optimizer, as `lightning_module_state_dict` does weights."""
        if not self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        assert self.model is not None
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return cast("dict[str, Any]", get_optimizer_state_dict(self.model, plain))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Let the checkpoint IO write, that of rank 0 a whole checkpoint, that of every rank parts.

        Lightning writes parts by itself, at once.
        """
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        self.checkpoint_io.save_checkpoint(checkpoint, path, SHARDED)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Restore network and optimizers from a folder or file; return what else it holds."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            try:
                return super().load_checkpoint(path, weights_only)
            except CheckpointException as error:  # derives from BaseException
                reasons = {str(cause) for cause, _ in error.failures.values()}
                raise UserError(f"{path} cannot be read: {'; '.join(sorted(reasons))}") from error
        assert self.model is not None
        # Mapped and not read, because the tensors are needed on rank 0 alone, which broadcasts
        # them.
        checkpoint: dict[str, Any] = torch.load(
            path, mmap=True, map_location="cpu", weights_only=True
        )
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        # The checkpoint of an adapter lacks the base, which the network has already.
        strict = self.lightning_module is None or self.lightning_module.strict_loading
        whole_or_adapter = StateDictOptions(
            full_state_dict=True, broadcast_from_rank0=True, strict=strict
        )
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=whole_or_adapter)
        for optimizer, state in zip(
            self.optimizers, checkpoint.pop("optimizer_states"), strict=True
        ):
            set_optimizer_state_dict(
                self.model, optimizer, by_name(state, optimizer, self.model), options=options
            )
        return checkpoint


def by_name(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module
) -> dict[str, Any]:
    """Key an optimizer's state by parameter names instead of numbers.

    Args:
        state: As `Optimizer.state_dict()` gives it; its numbers are counted in the order of its
            groups.
        optimizer: One with the same groups.
        module: Whose names are used.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    own = [
        names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    ]
    saved = [number for group in state["param_groups"] for number in group["params"]]
    name_of = dict(zip(saved, own, strict=True))
    return {
        "state": {name_of[number]: value for number, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def saves_parts(strategy: Strategy) -> bool:
    """Tell whether every rank writes its part of a checkpoint, by the checkpoint IO."""
    return isinstance(strategy, ShardedStrategy) and bool(strategy._save_distributed_checkpoint)


def token_group(strategy: Strategy) -> Any:
    """Return the process group of the ranks that hold different tokens; None for all ranks.

    A sum over all ranks would count the tokens of tensor-parallel twins several times.
    """
    return strategy.mesh.loss.get_group() if isinstance(strategy, ShardedStrategy) else None


def mesh_sizes(strategy: Strategy) -> MeshSizes | None:
    """Return the sizes of a strategy's mesh, known before there is one; None without a mesh."""
    return strategy.sizes if isinstance(strategy, ShardedStrategy) else None


def row_parts(strategy: Strategy) -> RowParts | None:
    """Return which tokens of a row this rank holds; None where rows are whole."""
    cp = strategy.mesh.cp if isinstance(strategy, ShardedStrategy) else None
    if cp is None:
        return None
    return RowParts(cp.get_group().group_name, cp.size(), cp.get_local_rank())


def token_ranks(trainer: Trainer) -> int:
    """Count the ranks that hold different tokens."""
    strategy = trainer.strategy
    if isinstance(strategy, ShardedStrategy):
        return strategy.mesh.loss.size()
    return trainer.world_size


def sum_over_tokens(strategy: Strategy, tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks that hold different tokens; all ranks call this together."""
    total: Tensor = strategy.reduce(tensor, token_group(strategy), reduce_op="sum")
    return total


STRATEGIES = ("auto", "ddp", "fsdp", "ddp_find_unused_parameters_true", "single_device")
"""Names that `trainer.strategy` may have; a strategy of one's own is given by its class path."""


def sharding_of(
    strategy: Any, parallel: Parallel | None, devices: int
) -> Literal["none", "ddp", "fsdp"]:
    """Say how a strategy divides weights, gradients and moments, for a plan of their memory.

    Args:
        strategy: `trainer.strategy` of a parsed config: a name, or a class path with arguments.
        parallel: From `parallel_of`.
        devices: Devices of the run over all machines.
    """
    if parallel is not None:
        return "fsdp"
    name = str(strategy if isinstance(strategy, str) else strategy["class_path"]).lower()
    if "fsdp" in name or "modelparallel" in name or "sharded" in name:
        return "fsdp"
    return "ddp" if devices > 1 else "none"


def parallel_of(strategy: Any, parallel: Parallel | None) -> Parallel | None:
    """Return how a config divides its devices; None where the network is not sharded by us.

    Args:
        strategy: `trainer.strategy` of a parsed config.
        parallel: Its `parallel`.

    Raises:
        UserError: Both say how the devices are divided.
    """
    if parallel is None:
        return Parallel() if strategy == "fsdp" else None
    if strategy not in ("auto", "fsdp"):
        raise UserError(
            f"parallel and trainer.strategy={strategy!r} both say how devices divide the work:"
            " leave one of the two out"
        )
    return parallel


def make_strategy(
    strategy: Any, devices: int, *, parallel: Parallel | None, sharded_checkpoints: bool
) -> str | Strategy:
    """Make the strategy that Lightning's Trainer gets.

    Args:
        strategy: `trainer.strategy`, by name or as an instance.
        devices: Devices of the run over all machines.
        parallel: From `parallel_of`.
        sharded_checkpoints: Let every rank write its part of a checkpoint.
    """
    if parallel is not None:
        return ShardedStrategy(parallel, sharded_checkpoints=sharded_checkpoints)
    if strategy == "ddp" or (strategy == "auto" and devices > 1):
        # The only buffers are tables that every rank derives by itself.
        return DDPStrategy(broadcast_buffers=False)
    found: str | Strategy = strategy
    return found
