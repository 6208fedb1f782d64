"""Initial weights: the named schemes, written over a built transformer."""

import math
from typing import Optional

import torch
from torch import Tensor

from lit_pretrain.model.config import ModelConfig

RESIDUAL_WRITERS = ("attention.out_proj.weight", "feed_forward.down_proj.weight")
"""Ends of the names of the matrices whose output is added to the residual stream."""


def init_parameter(name: str, role: str, parameter: Tensor, config: ModelConfig, generator: Optional[torch.Generator]) -> None:
    """Fill one parameter in place with the scheme `config.init`."""
    if role == "scalar":
        parameter.fill_(1.0 if name == "residual_scale_L" else 0.1)
    elif role == "vector":
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    elif name.endswith("value_gate.weight"):
        parameter.zero_()  # 2 * sigmoid(0) = 1: the value embedding enters as it is
    elif config.init == "zero_residual":
        _zero_residual(name, role, parameter, config, generator)
    else:
        std = config.init_std
        if config.init == "gpt2" and name.endswith(RESIDUAL_WRITERS):
            std /= math.sqrt(2 * config.n_layer)  # Radford et al. 2019, section 2.3: one term per write to the residual stream
        parameter.normal_(0.0, std, generator=generator)


def _zero_residual(name: str, role: str, parameter: Tensor, config: ModelConfig, generator: Optional[torch.Generator]) -> None:
    if role == "embedding":
        parameter.normal_(0.0, 1.0, generator=generator)
    elif role == "head":
        parameter.normal_(0.0, 0.001, generator=generator)
    elif name.endswith(RESIDUAL_WRITERS):
        parameter.zero_()
    else:
        # A value embedding stands beside v_proj's output and gets the deviation of v_proj's weights: small next to the values.
        fan_in = config.width if role == "value_embedding" else parameter.shape[1]
        bound = math.sqrt(3 / fan_in)  # a uniform distribution on (-b, b) has deviation b / sqrt(3)
        parameter.uniform_(-bound, bound, generator=generator)
