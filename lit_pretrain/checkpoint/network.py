"""Networks from checkpoints: whole, ready to use, shaped by the config of their run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_pretrain.checkpoint.adapted import AdapterRecord
from lit_pretrain.checkpoint.checkpoint_record import CheckpointRecord
from lit_pretrain.checkpoint.find import config_of, is_hf_folder, resolve
from lit_pretrain.checkpoint.hf_import import read_shape
from lit_pretrain.checkpoint.weights import (
    load_weights,
    read_adapter_record,
    read_metadata,
    read_stored,
    weights_identity,
)
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.transformer import Transformer


def model_config(fields: dict[str, Any]) -> ModelConfig:
    """Build the shape from the plain values of a saved config."""
    scaling = fields.get("rope_scaling")
    return ModelConfig(**{**fields, "rope_scaling": RopeScaling(**scaling) if scaling else None})


def load_network(checkpoint: Path) -> Transformer:
    """Load the network of a checkpoint, on the CPU in fp32.

    Args:
        checkpoint: `<run>/checkpoints/step=....ckpt`, beside the run's config.yaml.
    """
    fields = config_of(checkpoint)["model"]["net"]
    with torch.device("meta"):
        net = Transformer(model_config(fields))
    net.to_empty(device="cpu")
    load_weights(net, str(checkpoint))
    return net


def read_hf_network(folder: Path) -> Transformer:
    """Load the network of a Hugging Face folder, on the CPU in fp32."""
    net = Transformer(model_config(read_shape(folder))).eval()
    load_weights(net, str(folder))
    return net


def load_adapted(
    checkpoint: Path, *, base: str | None = None
) -> tuple[Transformer, AdapterRecord, str]:
    """Load an adapter's checkpoint, on the CPU in fp32, with the adapter beside its base.

    Args:
        checkpoint: In the run's folder, beside its config.yaml.
        base: Where the base lies, if not where it lay in training.

    Returns:
        The network, what the checkpoint says of its adapter, and where the base was found.

    Raises:
        UserError: The checkpoint holds a whole network, or its base is gone or has changed.
    """
    record = read_adapter_record(checkpoint)
    if record is None:
        raise UserError(f"{checkpoint} is a whole network: there is no adapter in it")
    beneath = record.find_base(checkpoint) if base is None else base
    record.check_base(weights_identity(beneath), beneath, str(checkpoint))
    with torch.device("meta"):
        net = Transformer(model_config(config_of(checkpoint)["model"]["net"]))
    net.to_empty(device="cpu")
    load_weights(net, beneath)
    record.adapter.apply(net)
    net.load_state_dict(read_stored(checkpoint), strict=False)
    return net.eval(), record, beneath


@dataclass(frozen=True)
class Parent:
    """Describe the run or Hugging Face folder that a stage takes its first weights from."""

    path: Path
    """A checkpoint of ours, or a Hugging Face folder."""
    shape: dict[str, Any]
    """The fields of its `ModelConfig`."""
    tokenizer_hash: str | None
    """Identity of the tokenizer it was trained with; None for a Hugging Face folder, whose own
    files say it.
    """


def find_parent(where: str) -> Parent:
    """Find a parent.

    Args:
        where: A run folder, one of its checkpoints, or a Hugging Face folder.

    Raises:
        UserError: It is none of these, or cannot be read.
    """
    folder = Path(where)
    if is_hf_folder(folder):
        return Parent(folder, read_shape(folder), None)
    path = resolve(where)
    record = CheckpointRecord.of(read_metadata(path))
    tokenizer_hash = None if record is None else record.contract.get("data.tokenizer")
    return Parent(path, config_of(path)["model"]["net"], tokenizer_hash)
