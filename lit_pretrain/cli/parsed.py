"""Parsed: the network and the adapter that a parsed config describes, as plain values or made already, and what they cost."""

from importlib import import_module
from typing import Any, Optional

from jsonargparse import Namespace

from lit_pretrain.adapter import LoRA
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.cli.adapter_cost import adapter_cost
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.scaling.flops import flops_per_token


def net_of(config: Namespace) -> ModelConfig:
    """The shape of the network in a parsed config."""
    values = config.model.net
    return values if isinstance(values, ModelConfig) else model_config(values.as_dict())


def adapter_of(config: Namespace) -> Optional[LoRA]:
    """The adapter in a parsed config."""
    values = config.model.adapter
    return values if values is None or isinstance(values, LoRA) else LoRA(**values.as_dict())


def made(values: Any) -> Any:
    """What a parsed config describes by class_path and init_args, made now if it is not yet."""
    if not isinstance(values, Namespace):
        return values
    module, _, name = str(values.class_path).rpartition(".")
    arguments = values.get("init_args")
    return getattr(import_module(module), name)(**(arguments.as_dict() if isinstance(arguments, Namespace) else arguments or {}))


def adapter_parameters(config: Namespace) -> Optional[int]:
    """Parameters of its adapter; None without one."""
    adapter = adapter_of(config)
    return None if adapter is None else adapter_cost(net_of(config), adapter).trained


def training_flops(config: Namespace, *, seq_len: int) -> float:
    """FLOPs of training on one token.

    Args:
        config: Parsed config.
        seq_len: Inputs per row.
    """
    return flops_per_token(net_of(config), seq_len, adapter_parameters=adapter_parameters(config)).training
