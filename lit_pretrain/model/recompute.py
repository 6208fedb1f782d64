"""Recomputation: what a block keeps for its backward pass, and what it computes once more."""

from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lit_pretrain.model.config import Checkpointing


@cache
def _attention() -> frozenset[Any]:
    """Collect the operations that compute attention, as far as this torch has them."""
    import lit_pretrain.model.tiled_attention  # noqa: F401  (registers its operation)

    names = (
        ("lit_pretrain", "tiled_attention"),
        ("aten", "_scaled_dot_product_flash_attention"),
        ("aten", "_scaled_dot_product_efficient_attention"),
        ("aten", "_scaled_dot_product_cudnn_attention"),
        ("aten", "_scaled_dot_product_flash_attention_for_cpu"),
        ("aten", "_scaled_dot_product_fused_attention_overrideable"),
        ("torch_attn", "_varlen_attn"),
    )
    found = [getattr(getattr(torch.ops, space), name, None) for space, name in names]
    flex = getattr(torch.ops.higher_order, "flex_attention", None)
    return frozenset([*(op.default for op in found if op is not None), *filter(None, [flex])])


_PRODUCTS = frozenset(
    {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
)


def _policy(
    products: bool, counts: dict[bool, int], context: Any, operation: Any, *_: Any, **__: Any
) -> CheckpointPolicy:
    """Decide whether what an operation puts out is kept."""
    keep = operation in _attention()
    if products and operation in _PRODUCTS:
        # Counted apart, so that the second pass decides as the first one did.
        count = counts[context.is_recompute] = counts.get(context.is_recompute, 0) + 1
        keep = count % 2 == 1
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts(products: bool) -> Any:
    return create_selective_checkpoint_contexts(partial(_policy, products, {}))


def checkpoint_options(checkpointing: Checkpointing) -> dict[str, Any]:
    """Return what `torch.utils.checkpoint` needs to keep more than the input.

    Args:
        checkpointing: Not False.
    """
    if checkpointing is True:
        return {}
    return {"context_fn": partial(_contexts, checkpointing == "products")}
