"""Model: a dense decoder-only transformer that covers the Llama, Qwen3 and GPT-2 families.

`Block` is what a block of your own derives from.
"""

from typing import Any

__all__ = ["Block"]


def __getattr__(name: str) -> Any:
    """Import `Block` when it is asked for: the planner reads shapes without torch."""
    if name == "Block":
        from lit_pretrain.model.transformer import Block

        return Block
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
