"""Parameter scales: the rules of a transfer over width and depth, for each parameter of a network.

They are those of muP with CompleteP (alpha = 1), in the form without factors in the network: a
branch that is added times 1/l is one whose last matrix has first weights and rate times 1/l. The
guide docs/guides/transfer.md has them as a table.
"""

from collections.abc import Mapping
from dataclasses import replace

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.roles import Role
from lit_pretrain.transfer import ParameterScale, Transfer

RESIDUAL_WRITERS = ("attention.out_proj", "feed_forward.down_proj")
"""Modules whose output is added to the residual stream."""
FIXED_FAN_IN = ("attention.value_gate",)
"""Modules that read as many channels at any width."""
KEYS_AND_VALUES = ("attention.k_proj", "attention.v_proj", *FIXED_FAN_IN)
"""Modules that write as many channels as there are key and value heads, or one for each."""


def transferred_shape(config: ModelConfig, transfer: Transfer | None) -> ModelConfig:
    """Return the shape that a transfer gives a network: a tied head's logits are scaled.

    A table that is embedding and head at once keeps the embedding's weights and rate, so that its
    logits must be divided by m where an untied head is divided itself.

    Raises:
        UserError: The network has a part for which there is no rule.
    """
    if transfer is None:
        return config
    if config.block is not None:
        raise UserError(
            f"model.transfer knows no rule for model.net.block={config.block!r}, because it cannot"
            " tell what such a block adds to the residual stream: remove one of them"
        )
    base_head_dim = transfer.base_head_dim or config.head_size
    if config.qk_norm and not config.norm_weight and base_head_dim != config.head_size:
        raise UserError(
            f"model.transfer.base_head_dim={base_head_dim} differs from the head size of"
            f" {config.head_size}, and the norms of queries have no gain to hold the scale of"
            " attention: keep the size of a head and let model.net.n_head grow, or set"
            " model.net.norm_weight: true"
        )
    wanted = None
    if config.tie_embeddings and config.width != transfer.base_width:
        wanted = 1 / transfer.width_ratio(config.width)
    if config.logit_scale not in (None, wanted):
        raise UserError(
            f"model.net.logit_scale={config.logit_scale} stands beside model.transfer, which sets"
            f" it to {wanted} at width {config.width}: leave it out"
        )
    return replace(config, logit_scale=wanted)


def parameter_scales(
    config: ModelConfig, transfer: Transfer, roles: Mapping[str, Role]
) -> dict[str, ParameterScale]:
    """Find what differs from the base in each parameter of a network.

    Args:
        config: Shape of the network.
        transfer: The base.
        roles: Role of each parameter, by its name in the network.
    """
    return {name: _scale(name, role, config, transfer) for name, role in roles.items()}


def _scale(name: str, role: Role, config: ModelConfig, transfer: Transfer) -> ParameterScale:
    m, depth = transfer.width_ratio(config.width), transfer.depth_ratio(config.n_layer)
    base_head_dim = transfer.base_head_dim or config.head_size
    base_n_kv_head = transfer.base_n_kv_head
    owner, _, _ = name.rpartition(".")
    if role == "head":
        return ParameterScale(init=1 / m, rate=1 / m, fan_in=m)
    if role in ("scalar", "embedding_scalar"):
        # L of the terms of the embedding add up, and L of the factors of the stream multiply.
        first = 1 / depth if role == "embedding_scalar" else 1.0
        return ParameterScale(init=first, rate=1 / depth, fold=first)
    inside = name.startswith("blocks.")
    # Gradients of what is in a branch shrink with its factor 1/l, all with the head's 1/m.
    shrinks = m * depth if inside or role == "value_embedding" else m
    if role in ("embedding", "value_embedding"):
        return ParameterScale(eps=1 / shrinks)
    fold, kind = 1.0, "gate" if owner.endswith(FIXED_FAN_IN) else ""
    if owner.endswith(RESIDUAL_WRITERS):
        fold, kind = 1 / depth, "residual"
    elif owner.endswith("attention.q_norm" if config.qk_norm else "attention.q_proj"):
        # Scores are divided by the root of the head's size; the rest of 1/size is put here.
        fold = (base_head_dim / config.head_size) ** 0.5
        kind = "query"
    if owner.endswith(("attention.q_norm", "attention.k_norm")):
        shrinks = depth  # all heads, m times as many, share these gains
    if role == "vector":
        return ParameterScale(init=fold, rate=fold, eps=1 / (shrinks * fold), fold=fold, kind=kind)
    fan_in = 1.0 if owner.endswith(FIXED_FAN_IN) else m
    fan_out = m
    if owner.endswith(KEYS_AND_VALUES):
        size = config.head_size / base_head_dim
        heads = m / size if base_n_kv_head is None else config.kv_heads / base_n_kv_head
        fan_out = heads if owner.endswith(FIXED_FAN_IN) else heads * size
        kind = kind or "key_value"
    return ParameterScale(
        init=fold / fan_in**0.5,
        rate=fold / fan_in,
        eps=1 / (shrinks * fold),
        fold=fold,
        fan_in=fan_in,
        fan_out=fan_out,
        kind=kind,
    )
