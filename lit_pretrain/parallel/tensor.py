"""Tensor parallelism: every matrix and the vocabulary split over the devices of one axis.

Between the modules of a block every device holds the tokens of its own part of each row (sequence
parallelism, Korthikanti et al. 2022, 2205.05198), as plain tensors. They are gathered before
attention and feed-forward, whose matrices are split by heads and by channels, and scattered after
them. Parameters are DTensors, so that optimizer, clipping and checkpoints know what is whose.
An adapter's small matrices are split as the large ones beside them.

Axes: B rows, T tokens, D width, L layers.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from lit_pretrain.model.gather import gather_tokens
from lit_pretrain.model.transformer import Block, Transformer


def split_(net: Transformer, mesh: DeviceMesh) -> None:
    """Split a network over a mesh of one axis; its hidden states come out whole.

    Args:
        net: A network, on the meta device or not.
        mesh: Its axis.
    """
    # New parameters take the place of the old ones, and `nn.Parameter` is trained by default.
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    parallelize_module(net, mesh, _styles(net))
    # These belong to the network itself, and styles are of its modules.
    for name in ("residual_scale_L", "embedding_scale_L"):
        scale_L: Tensor | None = getattr(net, name)
        if scale_L is not None:
            whole = distribute_tensor(scale_L.detach(), mesh, [Replicate()])
            setattr(net, name, nn.Parameter(whole))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    # What a collective returns before it has ended is a tensor of a special kind, whose gradient a
    # compiled block loses (torch 2.13: that of the embedding was zero).
    net.token_embedding.register_forward_hook(lambda module, inputs, x_BTD: x_BTD.clone())
    group, devices = mesh.get_group().group_name, mesh.size()
    # For the head each device multiplies all tokens by its own part of the vocabulary.
    net.final_norm.register_forward_hook(
        lambda module, inputs, hidden_BTD: gather_tokens(hidden_BTD, group, devices)
    )


class _Columns(ColwiseParallel):
    """Split the outputs of a matrix; of an adapter beside it B, which has the same outputs."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        _split_parameters(module, device_mesh, {"weight": 0, "bias": 0, "lora_B": 0})


class _Rows(RowwiseParallel):
    """Split the inputs of a matrix; of an adapter beside it A, which has the same inputs."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        _split_parameters(module, device_mesh, {"weight": 1, "lora_A": 1})


def _split_parameters(module: nn.Module, mesh: DeviceMesh, axes: dict[str, int]) -> None:
    """Split the parameters named along these axes; torch leaves whole copies of the others."""
    for name, axis in axes.items():
        parameter = module._parameters.get(name)
        if parameter is not None:
            split = distribute_tensor(parameter.detach(), mesh, [Shard(axis)])
            setattr(module, name, nn.Parameter(split))


def _styles(net: Transformer) -> dict[str, ParallelStyle]:
    """Say of each module how its parameters are split and what comes in and goes out."""
    rows = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    styles: dict[str, ParallelStyle] = {
        "token_embedding": rows,
        "final_norm": SequenceParallel(use_local_output=True),
    }
    for layer in net.value_embeddings:
        styles[f"value_embeddings.{layer}"] = ColwiseParallel()  # its columns are heads
    if net.position_embedding is not None:
        styles["position_embedding"] = rows
    if net.embed_norm is not None:
        styles["embed_norm"] = SequenceParallel(use_local_output=True)
    if net.head is not None:
        styles["head"] = ColwiseParallel()  # nobody calls it: its weight is read
    gathered: Any = (Replicate(), None, None)
    for number, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        attention, feed_forward = f"blocks.{number}.attention", f"blocks.{number}.feed_forward"
        styles |= {
            f"blocks.{number}.attention_norm": SequenceParallel(),
            f"blocks.{number}.ffn_norm": SequenceParallel(),
            attention: PrepareModuleInput(
                input_layouts=(Shard(1), None, None), desired_input_layouts=gathered
            ),
            f"{attention}.q_proj": _Columns(),
            f"{attention}.k_proj": _Columns(),
            f"{attention}.v_proj": _Columns(),
            f"{attention}.out_proj": _Rows(output_layouts=Shard(1)),
            feed_forward: PrepareModuleInput(
                input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)
            ),
            f"{feed_forward}.up_proj": _Columns(),
            f"{feed_forward}.down_proj": _Rows(output_layouts=Shard(1)),
        }
        if block.feed_forward.gate_proj is not None:
            styles[f"{feed_forward}.gate_proj"] = _Columns()
        if block.attention.value_gate is not None:
            styles[f"{attention}.value_gate"] = _Columns()
        if block.attention.q_norm is not None:
            # Heads are what is split; the gain is whole, and its gradients are summed.
            heads = SequenceParallel(sequence_dim=2, use_local_output=True)
            styles |= {f"{attention}.q_norm": heads, f"{attention}.k_norm": heads}
    return styles
