"""PEFT format: our adapters as adapter_config.json and adapter_model.safetensors, and back.

Names exist for networks that have a Hugging Face architecture: Llama, Mistral, Qwen2 and Qwen3,
whose matrices are ours one to one, and GPT-2, which keeps queries, keys and values in one matrix.
There, three updates of the parts are one update of thrice the rank, with B block by block, and one
update of the whole is three that share A. Nothing is lost either way, but a round trip does not
give the same rank.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_pretrain.adapter import FIRST_ROW, ROWS, LoRA, stored_factors
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.plain_data import load_json

PeftConfig = Mapping[str, Any]
"""Content of adapter_config.json, whoever wrote it."""
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_ROOT = "base_model.model."
_FUSED = "attn.c_attn"
_PARTS = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

_LLAMA = {
    **{f"attention.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"},
    "attention.out_proj": "self_attn.o_proj",
    **{f"feed_forward.{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
_GPT2 = {
    **{part: _FUSED for part in _PARTS},
    "attention.out_proj": "attn.c_proj",
    "feed_forward.up_proj": "mlp.c_fc",
    "feed_forward.down_proj": "mlp.c_proj",
}
_LAYERS = {"llama": "model.layers.", "gpt2": "transformer.h."}
_TABLES = {
    "llama": {"token_embedding": "model.embed_tokens", "head": "lm_head"},
    "gpt2": {"token_embedding": "transformer.wte", "head": "lm_head"},
}
"""Matrices with a row for each token."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
}
"""Settings of peft that change what an adapter does, and the values under which they do not."""


def family(shape: ModelConfig) -> str:
    """Find the layout of names that a shape has in transformers: llama or gpt2.

    Raises:
        UserError: It has none.
    """
    plain = (
        shape.norm_weight
        and not shape.embed_norm
        and not shape.residual_scalars
        and not shape.reads_previous
        and shape.value_embeddings == "none"
        and shape.block is None
    )
    plain = plain and shape.attn_softcap is None and shape.logit_softcap is None
    if plain and (shape.norm, shape.position, shape.activation) == ("rmsnorm", "rope", "swiglu"):
        return "llama"
    if (
        plain
        and (shape.norm, shape.position, shape.gated) == ("layernorm", "learned", False)
        and shape.activation != "relu2"
    ):
        return "gpt2"
    raise UserError(
        "peft adapts networks of transformers, and this one has no architecture there: it must be"
        " like a Llama, Mistral, Qwen2 or Qwen3 (rmsnorm, rope, swiglu) or a GPT-2 (layernorm,"
        " learned positions, gelu), without soft caps, value embeddings, residual scalars or a"
        " table of pairs of tokens"
    )


# ------------------------------------------------------------------ export


def to_peft(
    shape: ModelConfig, adapter: LoRA, tensors: Mapping[str, Tensor], *, base: str | None
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Build the two files of peft.

    Args:
        shape: Shape of the network.
        adapter: Settings of the adapter.
        tensors: Its tensors, by the names of our state dict.
        base: The base that peft loads by default: a folder, or a name on the hub.

    Returns:
        The content of adapter_config.json, and the tensors by the names of peft.
    """
    kind = family(shape)
    rank = adapter.rank * (2 if adapter.init == "pissa" else 1)
    updates: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, Tensor] = {}
    first = 0
    for name, own in _by_matrix(tensors).items():
        if ROWS in own:
            rows[_TABLES[kind][name]], first = own[ROWS].float(), int(own[FIRST_ROW])
            continue
        layer, matrix = _split(name)
        A, B = stored_factors(own)
        target = (_LLAMA if kind == "llama" else _GPT2).get(matrix)
        if target is None:
            raise UserError(
                f"{name} has no counterpart in transformers: leave it out of model.adapter.targets"
            )
        update = {
            "A": A,
            "B": B,
            **({"magnitude": own["lora_magnitude"].float()} if adapter.dora else {}),
        }
        updates[f"{layer}.{target}#{matrix if target == _FUSED else ''}"] = update
    fused = {key.split("#")[0] for key in updates if key.split("#")[1]}
    plain = {key.split("#")[0]: value for key, value in updates.items() if not key.split("#")[1]}
    for key in fused:
        plain[key] = _fuse(
            {part: updates[f"{key}#{part}"] for part in _PARTS if f"{key}#{part}" in updates}, key
        )
    root = _ROOT + _LAYERS[kind]
    named = {}
    for key, update in sorted(plain.items()):
        named[f"{root}{key}.lora_A.weight"] = update["A"].contiguous()
        named[f"{root}{key}.lora_B.weight"] = update["B"].contiguous()
        if adapter.dora:
            named[f"{root}{key}.lora_magnitude_vector"] = update["magnitude"].contiguous()
    for module, new in rows.items():
        # A row takes the place of the base's, whatever the name says.
        named[f"{_ROOT}{module}.token_adapter.trainable_tokens_delta"] = new.contiguous()
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _alpha(adapter.scale, rank, adapter.rslora),
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": kind == "gpt2",
        "target_modules": _targets([_LAYERS[kind] + key for key in sorted(plain)], shape.n_layer),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    if rows:
        config["trainable_token_indices"] = {
            module.rsplit(".", 1)[-1]: list(range(first, first + len(new)))
            for module, new in rows.items()
        }
    ranks = {
        key: plain[key]["A"].shape[0] for key in sorted(fused) if plain[key]["A"].shape[0] != rank
    }
    if ranks:
        config["rank_pattern"] = {_LAYERS[kind] + key: r for key, r in ranks.items()}
        config["alpha_pattern"] = {
            _LAYERS[kind] + key: _alpha(adapter.scale, r, adapter.rslora)
            for key, r in ranks.items()
        }
    return config, named


def _alpha(scale: float, rank: int, rslora: bool) -> float:
    return scale * (math.sqrt(rank) if rslora else rank)


def _fuse(parts: Mapping[str, dict[str, Tensor]], key: str) -> dict[str, Tensor]:
    """Fuse the updates of queries, keys and values into one of the matrix that holds all three."""
    size = next(iter(parts.values()))["B"].shape[0]
    # All rows of A below each other, and B in blocks, so that no part gets what is another's.
    A = torch.cat([part["A"] for part in parts.values()])
    B = torch.zeros(size * len(_PARTS), A.shape[0])
    column = 0
    for i, name in enumerate(_PARTS):
        if name in parts:
            width = parts[name]["B"].shape[1]
            B[i * size : (i + 1) * size, column : column + width] = parts[name]["B"]
            column += width
    fused = {"A": A, "B": B}
    if all("magnitude" in part for part in parts.values()):
        if len(parts) < len(_PARTS):
            raise UserError(
                f"{key}: DoRA of {', '.join(parts)} alone cannot be exported to GPT-2, which has"
                " one matrix for all three"
            )
        fused["magnitude"] = torch.cat([part["magnitude"] for part in parts.values()])
    return fused


def _targets(names: list[str], layers: int) -> list[str]:
    """Name matrices for peft, without their layers if every layer has the same ones.

    peft adapts every module whose name ends like this.
    """
    kinds = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names})
    return kinds if len(names) == len(kinds) * layers else names


# ------------------------------------------------------------------ import


def read_peft(folder: Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Read the two files of peft: its config and its tensors.

    Raises:
        UserError: One is missing or damaged.
    """
    try:
        config = load_json((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = load_file(folder / PEFT_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not an adapter of peft, or a damaged one ({PEFT_CONFIG}, {PEFT_WEIGHTS}):"
            f" {error}"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / PEFT_CONFIG} must hold a JSON object")
    _check_kinds(config, folder)
    for name, tensor in tensors.items():
        if ".lora_magnitude_vector" not in name and tensor.ndim != 2:
            raise UserError(
                f"{folder / PEFT_WEIGHTS}: {name} must be a matrix; it has {tensor.ndim} dimensions"
            )
    return config, tensors


def _check_kinds(config: PeftConfig, folder: Path) -> None:
    """Refuse fields whose values are of another kind than the field."""
    if "lora_alpha" not in config:
        raise UserError(f"{folder / PEFT_CONFIG}: lora_alpha is missing")
    patterns = config.get("alpha_pattern") or {}
    numbers = {field: config[field] for field in ("lora_alpha", "lora_dropout") if field in config}
    if isinstance(patterns, dict):
        numbers |= {f"alpha_pattern.{key}": value for key, value in patterns.items()}
        for key in patterns:
            try:
                re.compile(key)
            except re.error as error:
                raise UserError(
                    f"{folder / PEFT_CONFIG}: alpha_pattern has {key!r}, which is no regular"
                    f" expression: {error}"
                ) from None
    else:
        raise UserError(f"{folder / PEFT_CONFIG}: alpha_pattern={patterns!r} must be an object")
    for field, value in numbers.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = number and (0 <= value < 1 if field == "lora_dropout" else 0 < value < math.inf)
        if not fits:
            wanted = "in [0, 1)" if field == "lora_dropout" else "positive"
            raise UserError(f"{folder / PEFT_CONFIG}: {field}={value!r} must be a number, {wanted}")


def from_peft(
    shape: ModelConfig, config: PeftConfig, tensors: Mapping[str, Tensor], *, where: str
) -> tuple[LoRA, dict[str, Tensor]]:
    """Build an adapter of ours from the two files of peft.

    If matrices differ in rank or scale, all get the largest rank, by rows of zeros, and the scale
    of the first, by a factor on B.

    Args:
        shape: Shape of the base network.
        config: Content of adapter_config.json.
        tensors: Content of adapter_model.safetensors.
        where: Names the folder in messages.

    Raises:
        UserError: The adapter is of a kind that we do not have; names the field and its value.
    """
    kind = family(shape)
    _check(config, where)
    rslora, dora = bool(config.get("use_rslora", False)), bool(config.get("use_dora", False))
    found: dict[str, dict[str, Tensor]] = {}
    scales: dict[str, float] = {}
    root = _ROOT + _LAYERS[kind]
    pattern = re.compile(
        re.escape(root) + r"(\d+)\.(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?"
    )
    names = {hf: ours for ours, hf in (_LLAMA if kind == "llama" else _GPT2).items()}
    for key, value in tensors.items():
        match = pattern.fullmatch(key)
        if match is None or match[2] not in names:
            raise UserError(
                f"{where}/{PEFT_WEIGHTS}: {key} is of no matrix of this network ({kind} names,"
                f" {root}0.… )"
            )
        name = f"{match[1]}.{match[2]}"
        found.setdefault(name, {})[match[3]] = value.float()
    for name, own in found.items():
        missing = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if dora else [])} - own.keys()
        if missing:
            raise UserError(
                f"{where}/{PEFT_WEIGHTS}: {root}{name} lacks {', '.join(sorted(missing))}"
            )
        rank = own["lora_A"].shape[0]
        own_alpha = _pattern(
            config.get("alpha_pattern") or {}, _LAYERS[kind] + name, config["lora_alpha"]
        )
        scales[name] = own_alpha / (math.sqrt(rank) if rslora else rank)
    if not found:
        raise UserError(f"{where}/{PEFT_WEIGHTS} holds no adapter")
    rank = max(own["lora_A"].shape[0] for own in found.values())
    scale = next(iter(scales.values()))
    alpha = float(config["lora_alpha"])
    if scale != alpha / (math.sqrt(rank) if rslora else rank):
        # lora_alpha and r belong to other matrices: keep the factor of the update instead.
        alpha = _alpha(scale, rank, rslora)
    ours: dict[str, Tensor] = {}
    for name, own in found.items():
        layer, _, matrix = name.partition(".")
        missing_rank = rank - own["lora_A"].shape[0]
        A = torch.nn.functional.pad(own["lora_A"], (0, 0, 0, missing_rank))
        B = torch.nn.functional.pad(own["lora_B"] * (scales[name] / scale), (0, missing_rank))
        parts = _PARTS if matrix == _FUSED else (names[matrix],)
        magnitudes = own["lora_magnitude_vector"].flatten().chunk(len(parts)) if dora else ()
        for i, (part, rows) in enumerate(zip(parts, B.chunk(len(parts)), strict=True)):
            prefix = f"blocks.{layer}.{part}"
            # Copies: what the parts of a fused matrix share there is trained apart from here on.
            ours[f"{prefix}.lora_A"], ours[f"{prefix}.lora_B"] = A.clone(), rows.clone()
            if dora:
                ours[f"{prefix}.lora_magnitude"] = magnitudes[i].clone()
    adapter = LoRA(
        rank=rank,
        alpha=alpha,
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(_regexes(sorted(_by_matrix(ours)), shape.n_layer)),
        rslora=rslora,
        dora=dora,
    )
    return adapter, ours


def _check(config: PeftConfig, where: str) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{where}/{PEFT_CONFIG}: peft_type={config.get('peft_type')!r} cannot be imported; only"
            " 'LORA' can"
        )
    for field, neutral in _NEUTRAL.items():
        if config.get(field, neutral[0]) not in neutral:
            raise UserError(
                f"{where}/{PEFT_CONFIG}: {field}={config[field]!r} is not supported; only"
                f" {neutral[0]!r} is"
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.split("_")[0].lower() in (
        "pissa",
        "olora",
        "corda",
        "loftq",
        "eva",
        "lora-ga",
    ):
        raise UserError(
            f"{where}/{PEFT_CONFIG}: init_lora_weights={start!r} may have changed the base beneath;"
            " save the adapter from peft with path_initial_model_for_weight_conversion, which"
            " makes it a plain LoRA of the unchanged base"
        )


def _pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """Look a matrix up in peft's alpha_pattern: the first regular expression that ends its name."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return float(value)
    return float(default)


def _regexes(names: list[str], layers: int) -> list[str]:
    kinds = sorted({_split(name)[1] for name in names})
    shorts = len(names) == len(kinds) * layers
    return (
        [re.escape(kind) + "$" for kind in kinds]
        if shorts
        else [f"^{re.escape(name)}$" for name in names]
    )


def _by_matrix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, tensor = key.rpartition(".")
        found.setdefault(name, {})[tensor] = value
    return found


def _split(name: str) -> tuple[str, str]:
    """Split a name: blocks.3.attention.q_proj becomes 3 and attention.q_proj."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        raise UserError(
            f"{name} lies outside the blocks and has no counterpart in peft: leave it out of"
            " model.adapter.targets"
        )
    return match[1], match[2]
