"""Network: a whole network, ready to use, from a checkpoint and the config of its run."""

from pathlib import Path
from typing import Any

import torch

from lit_pretrain.checkpoint.find import config_of
from lit_pretrain.checkpoint.weights import load_weights
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
