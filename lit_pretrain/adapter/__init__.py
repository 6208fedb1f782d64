"""Adapter: a few trainable weights beside a frozen network, and freezing by name.

LoRA, rsLoRA, DoRA, PiSSA and QLoRA; rows for new tokens.
"""

from lit_pretrain.adapter.lora import (
    FIRST_ROW,
    ROWS,
    LoRA,
    freeze_,
    is_adapter_tensor,
    merged_weight,
    plain_weights,
    stored_factors,
    train_rows_,
)

__all__ = [
    "FIRST_ROW",
    "ROWS",
    "LoRA",
    "freeze_",
    "is_adapter_tensor",
    "merged_weight",
    "plain_weights",
    "stored_factors",
    "train_rows_",
]
