"""Mesh: the named axes along which the devices of a run divide its work.

Four axes share out the devices, slowest first: dp_replicate (copies of the network), dp_shard
(parts of its weights), cp (parts of every row) and tp (parts of every matrix). Devices that differ
in tp alone compute the same tokens, and those that differ in cp or tp alone read the same rows. So
whatever is summed, divided or shared out goes by one of three views of the mesh:

- `batch`, dp_replicate × dp_shard: who reads different rows;
- `loss`, dp_replicate × dp_shard × cp: who holds different tokens;
- `fsdp`, dp_shard × cp: over what weights, gradients and moments are sharded.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.step_size import MeshSizes


@dataclass(frozen=True)
class Parallel:
    """How the network, its rows and its state are divided over the devices of a run.

    The product of all sizes is the number of devices, trainer.devices × trainer.num_nodes.
    """

    dp_replicate: int = 1
    """Copies of the sharded network (HSDP): weights are gathered within a copy, and only gradients
    travel between copies, so let a copy be the devices of a machine or a few.
    """
    dp_shard: int | Literal["auto"] = "auto"
    """Devices over which weights, gradients and moments are sharded (FSDP). auto: all that the
    other sizes leave.
    """
    cp: int = 1
    """Devices that share the tokens of every row (context parallelism), for rows whose activations
    do not fit on one.
    """
    tp: int = 1
    """Devices that share every matrix (tensor parallelism) and the vocabulary; keep them within one
    machine, for they exchange activations in every layer.
    """
    ep: int = 1
    """Devices that share the experts of a layer; 1, as no network here has experts."""
    pp: int = 1
    """Stages of a pipeline of layers; 1, as pipelines are not supported."""

    def sizes(self, devices: int) -> MeshSizes:
        """Divide a number of devices.

        Raises:
            UserError: A size is impossible, or the sizes do not make up the devices.
        """
        for name, value in self.__dict__.items():
            if value != "auto" and value < 1:
                raise UserError(f"parallel.{name}={value} must be at least 1")
        if self.ep > 1:
            raise UserError(
                f"parallel.ep={self.ep}: no network here has experts to share out; set"
                " parallel.ep: 1"
            )
        if self.pp > 1:
            raise UserError(
                f"parallel.pp={self.pp}: pipelines are not supported; set parallel.pp: 1 and spread"
                " the network with parallel.dp_shard, parallel.tp and parallel.cp"
            )
        others = {"dp_replicate": self.dp_replicate, "cp": self.cp, "tp": self.tp}
        fixed = others if self.dp_shard == "auto" else {"dp_shard": self.dp_shard, **others}
        product = math.prod(fixed.values())
        if devices % product or (self.dp_shard != "auto" and devices != product):
            factors = " × ".join(f"{name} {size}" for name, size in fixed.items() if size > 1)
            relation = "divide" if self.dp_shard == "auto" else "equal"
            total = f" = {product}" if " × " in factors else ""
            raise UserError(
                f"parallel: {factors or 'dp_shard 1'}{total} must {relation} the number of devices,"
                f" {devices} (trainer.devices × trainer.num_nodes): change one of these sizes"
                + ("" if self.dp_shard == "auto" else ", or set parallel.dp_shard: auto")
            )
        shard = devices // product if self.dp_shard == "auto" else self.dp_shard
        return MeshSizes(self.dp_replicate, shard, self.cp, self.tp)


@dataclass(frozen=True)
class Mesh:
    """The devices of a run by axes, and the views by which work is shared out."""

    whole: DeviceMesh
    """The axes dp_replicate (where there are copies), fsdp and tp (where matrices are split)."""
    batch: DeviceMesh
    loss: DeviceMesh
    cp: DeviceMesh | None
    """None where rows are whole."""

    @classmethod
    def make(cls, sizes: MeshSizes, device_type: str) -> "Mesh":
        """Connect the devices; all ranks call this together.

        Axes of size 1 are left out, except for fsdp: each would cost every device a process group.
        """
        # The last axis varies fastest with the rank, so that devices that exchange the most (tp)
        # are neighbours.
        axes = {"dp_replicate": sizes.dp_replicate, "fsdp": sizes.shards, "tp": sizes.tp}
        axes = {name: size for name, size in axes.items() if size > 1 or name == "fsdp"}
        whole = init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        weights = weights_mesh(whole)
        # One group over both axes, so that a sum is one collective.
        loss = batch = weights if weights.ndim == 1 else weights._flatten("loss")
        if sizes.tp > 1:
            # The norm of all gradients is then summed at once, and DTensor does not warn.
            whole["fsdp", "tp"]._flatten("parts")
        cp = None
        if sizes.cp > 1:
            # Weights are sharded over dp_shard × cp as one axis; rows are shared out by dp_shard
            # alone.
            parts = whole._unflatten(
                list(axes).index("fsdp"), (sizes.dp_shard, sizes.cp), ("dp_shard", "cp")
            )
            cp = parts["cp"]
            batch = parts["dp_shard"]
            if weights.ndim == 2:
                batch = parts["dp_replicate", "dp_shard"]._flatten("batch")
        return cls(whole, batch, loss, cp)


def has_axis(mesh: DeviceMesh, axis: str) -> bool:
    """Say whether a mesh has an axis of more than one device."""
    return axis in (mesh.mesh_dim_names or ()) and mesh[axis].size() > 1


def weights_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the mesh that `fully_shard` takes: one axis, or two where the network has copies.

    Args:
        mesh: `Mesh.whole`, or that of Lightning's own strategy.

    Raises:
        UserError: It is Lightning's, with tensor parallelism.
    """
    if "data_parallel" not in (mesh.mesh_dim_names or ()):
        return mesh["dp_replicate", "fsdp"] if has_axis(mesh, "dp_replicate") else mesh["fsdp"]
    if has_axis(mesh, "tensor_parallel"):
        raise UserError(
            f"tensor_parallel_size={mesh['tensor_parallel'].size()} of Lightning's strategy is not"
            " supported; set parallel.tp instead of trainer.strategy"
        )
    return mesh["data_parallel"]


def check_sizes(sizes: MeshSizes, net: ModelConfig, seq_len: int) -> None:
    """Refuse a network or rows that the axes do not divide evenly.

    Args:
        sizes: Of the mesh.
        net: Shape of the network.
        seq_len: Tokens of a row.

    Raises:
        UserError: Names every field that does not fit, and what would.
    """
    tp, cp = sizes.tp, sizes.cp
    if cp > 1 and net.attention == "varlen":
        raise UserError(
            f"parallel.cp={cp}: model.net.attention='varlen' reads whole rows; use 'auto'"
        )
    if tp > 1:
        if net.block is not None:
            raise UserError(
                f"parallel.tp={tp}: model.net.block={net.block!r} may hold matrices that nobody"
                " knows how to split; set parallel.tp: 1 and use parallel.dp_shard"
            )
        if net.bigram_rows is not None:
            raise UserError(
                f"parallel.tp={tp}: model.net.bigram_rows={net.bigram_rows} is a table that cannot"
                " be split over devices; set parallel.tp: 1 and use parallel.dp_shard"
            )
        if net.smear:
            raise UserError(
                f"parallel.tp={tp}: model.net.smear reads the previous token's embedding, which may"
                " be on another device; set parallel.tp: 1 and use parallel.dp_shard"
            )
        split = net.tp_sizes
        wrong = [f"{name}={size}" for name, size in split.items() if size % tp]
        if wrong:
            common = math.gcd(*split.values())
            fitting = [str(n) for n in range(1, min(common, sizes.devices) + 1) if common % n == 0]
            raise UserError(
                f"parallel.tp={tp} must divide {' and '.join(wrong)}: change that, or set"
                f" parallel.tp to one of {', '.join(fitting)}"
            )
    # cp cuts a row into two chunks for each device (`RowParts`), and tp divides what a device
    # holds.
    unit = sizes.tokens_unit
    if seq_len % unit:
        factors = "2 × parallel.cp × parallel.tp" if cp > 1 else "parallel.tp"
        nearest = max(1, round(seq_len / unit)) * unit
        raise UserError(
            f"data.seq_len={seq_len} must be a multiple of {factors} = {unit}: set data.seq_len to"
            f" {nearest}, or lower the sizes"
        )
