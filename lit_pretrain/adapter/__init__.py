"""Adapter: a few trainable weights beside a frozen network (LoRA, rsLoRA, DoRA, PiSSA, QLoRA), and freezing by name."""

from .freeze import freeze_
from .linear import is_adapter_tensor, merged_weight, plain_weights
from .lora import LoRA

__all__ = ["LoRA", "freeze_", "is_adapter_tensor", "merged_weight", "plain_weights"]
