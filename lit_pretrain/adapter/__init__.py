"""Adapter: a few trainable weights beside a frozen network (LoRA, rsLoRA, DoRA, PiSSA, QLoRA),
and freezing by name.
"""

from lit_pretrain.adapter.lora import LoRA, freeze_, is_adapter_tensor, merged_weight, plain_weights

__all__ = ["LoRA", "freeze_", "is_adapter_tensor", "merged_weight", "plain_weights"]
