"""Shard: a network built on the meta device, sharded with FSDP2, then filled with the same weights on every world size."""

from collections.abc import Callable

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lit_pretrain.errors import UserError
from lit_pretrain.model.transformer import Transformer


def shard_(net: Transformer, mesh: DeviceMesh, *, device: torch.device, fill: Callable[[Transformer], None]) -> Transformer:
    """Shard each block and the root over the data-parallel mesh and give the parts their weights.

    The whole network is filled on rank 0 and broadcast part by part: random initialisation of DTensors draws the same
    numbers on every rank's own part, which is not the initialisation that was asked for.

    Args:
        net: A network on the meta device.
        mesh: Lightning's mesh with the dimensions data_parallel and tensor_parallel.
        device: Where the parts live.
        fill: Gives a whole network its first weights.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            f"tensor_parallel_size={mesh['tensor_parallel'].size()} is not supported; "
            "set tensor_parallel_size: 1 and data_parallel_size to the number of devices"
        )
    data = mesh["data_parallel"]
    for block in net.blocks:
        fully_shard(block, mesh=data)
    # The head is used right after the root's forward: keeping the root gathered saves gathering it twice.
    fully_shard(net, mesh=data, reshard_after_forward=False)
    net.to_empty(device=device)
    whole = {}
    if torch.distributed.get_rank() == 0:
        with torch.device("cpu"):
            full = Transformer(net.config)
        fill(full)
        whole = full.state_dict()
    set_model_state_dict(net, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return net
