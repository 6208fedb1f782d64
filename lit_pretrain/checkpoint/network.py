"""Network: a whole network, ready to use, from a checkpoint and the config of its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from lit_pretrain.checkpoint.adapted import AdapterRecord
from lit_pretrain.checkpoint.contract import KEY
from lit_pretrain.checkpoint.find import config_of, resolve
from lit_pretrain.checkpoint.hf_import import is_hf_folder, read_shape
from lit_pretrain.checkpoint.weights import (
    load_weights,
    read_metadata,
    read_record,
    read_stored,
    weights_identity,
)
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.transformer import Transformer


def model_config(fields: dict[str, Any]) -> ModelConfig:
    """The shape from the plain values of a saved config."""
    scaling = fields.get("rope_scaling")
    return ModelConfig(**{**fields, "rope_scaling": RopeScaling(**scaling) if scaling else None})


def load_network(checkpoint: Path) -> Transformer:
    """The network of a checkpoint, on the CPU in fp32.

    Args:
        checkpoint: `<run>/checkpoints/step=....ckpt`, beside the run's config.yaml.
    """
    fields = config_of(checkpoint)["model"]["net"]
    with torch.device("meta"):
        net = Transformer(model_config(fields))
    net.to_empty(device="cpu")
    load_weights(net, str(checkpoint))
    return net


def load_adapted(
    checkpoint: Path, *, base: Optional[str] = None
) -> tuple[Transformer, AdapterRecord, str]:
    """The network of an adapter's checkpoint, on the CPU in fp32, with the adapter beside its base.

    Args:
        checkpoint: In the run's folder, beside its config.yaml.
        base: Where the base lies, if not where it lay in training.

    Returns:
        The network, what the checkpoint says of its adapter, and where the base was found.

    Raises:
        UserError: The checkpoint holds a whole network, or its base is gone or has changed.
    """
    record = read_record(checkpoint)
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


# Parent: what a stage takes its first weights from, a run of ours or a Hugging Face folder.


@dataclass(frozen=True)
class Parent:
    """A parent, found and read as far as its shape."""

    path: Path
    """A checkpoint of ours, or a Hugging Face folder."""
    shape: dict[str, Any]
    """The fields of its `ModelConfig`."""
    tokenizer_hash: Optional[str]
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
    saved = read_metadata(path).get(KEY, {})
    return Parent(
        path, config_of(path)["model"]["net"], saved.get("contract", {}).get("data.tokenizer")
    )
