"""Recomputation: what a block keeps for its backward pass, and what it computes once more."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypedDict

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lit_pretrain.model.config import Checkpointing, ModelConfig, kept_within, products_of


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


_MATRICES = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})
_PRODUCTS = _MATRICES | {torch.ops.aten.bmm.default}


@dataclass(frozen=True)
class Recomputation:
    """What a block keeps beside its input."""

    attention: bool
    """What attention puts out."""
    products: tuple[int, ...] | None
    """Products of matrices that it keeps, by their place in the block; None for every second
    product of any kind.
    """

    @classmethod
    def of(
        cls, checkpointing: Checkpointing, config: ModelConfig, *, value_gate: bool
    ) -> "Recomputation | None":
        """Read a setting for one block; None where only the input is kept, or everything.

        Args:
            checkpointing: The setting.
            config: Shape of the network.
            value_gate: Whether the block has a gate for a value embedding.
        """
        if isinstance(checkpointing, bool) or checkpointing == "offload":
            return None
        if isinstance(checkpointing, str):
            return cls(True, None if checkpointing == "products" else ())
        kept = kept_within(config, checkpointing)
        places = list(products_of(config, value_gate=value_gate))
        return cls(kept.attention, tuple(places.index(name) for name in kept.products))


def _policy(
    attention: bool,
    products: tuple[int, ...] | None,
    counts: dict[bool, int],
    context: Any,
    operation: Any,
    *_: Any,
    **__: Any,
) -> CheckpointPolicy:
    """Decide whether what an operation puts out is kept."""
    keep = attention and operation in _attention()
    if operation in (_PRODUCTS if products is None else _MATRICES):
        # Counted apart, so that the second pass decides as the first one did.
        place = counts.get(context.is_recompute, 0)
        counts[context.is_recompute] = place + 1
        keep = place % 2 == 0 if products is None else place in products
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts(attention: bool, products: tuple[int, ...] | None) -> Any:
    return create_selective_checkpoint_contexts(partial(_policy, attention, products, {}))


class RecomputeOptions(TypedDict, total=False):
    """Options of `torch.utils.checkpoint`; empty keeps the input alone."""

    context_fn: Callable[[], Any]
    """Makes the contexts of the first and of the second pass."""


def checkpoint_options(kept: Recomputation | None) -> RecomputeOptions:
    """Return what `torch.utils.checkpoint` needs to keep more than the input."""
    if kept is None:
        return {}
    return {"context_fn": partial(_contexts, kept.attention, kept.products)}
