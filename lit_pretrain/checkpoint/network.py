"""Network: a whole network, ready to use, from a checkpoint and the config of its run."""

from pathlib import Path
from typing import Any, Optional

import torch

from lit_pretrain.checkpoint.adapted import AdapterRecord
from lit_pretrain.checkpoint.find import config_of
from lit_pretrain.checkpoint.weights import identity, load_weights, read_record, read_stored
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


def load_adapted(checkpoint: Path, *, base: Optional[str] = None) -> tuple[Transformer, AdapterRecord, str]:
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
    record.check_base(identity(beneath), beneath, str(checkpoint))
    with torch.device("meta"):
        net = Transformer(model_config(config_of(checkpoint)["model"]["net"]))
    net.to_empty(device="cpu")
    load_weights(net, beneath)
    record.adapter.apply(net)
    net.load_state_dict(read_stored(checkpoint), strict=False)
    return net.eval(), record, beneath
