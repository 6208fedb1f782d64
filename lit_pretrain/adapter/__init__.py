"""Adapter: a few trainable weights beside a frozen network, and freezing by name.

LoRA, rsLoRA, DoRA, PiSSA and QLoRA.
"""

from lit_pretrain.adapter.lora import LoRA, freeze_, is_adapter_tensor, merged_weight, plain_weights

__all__ = ["LoRA", "freeze_", "is_adapter_tensor", "merged_weight", "plain_weights"]
