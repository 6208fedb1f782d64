"""Export of a network to the config and tensors of transformers, the inverse of `hf_import`.

A configuration is written for transformers 4 and 5 alike: 5 reads `rope_parameters` and `dtype`, 4
reads `rope_theta`, `rope_scaling` and `torch_dtype` and silently ignores the others.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.hf_import import HF_INDEX, HF_WEIGHTS, rename_tensor
from lit_pretrain.checkpoint.layout import HF_CONFIG
from lit_pretrain.errors import UserError
from lit_pretrain.files import follow_umask, write_file
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer_files import CONFIG_FILENAME, MAP_FILENAME

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""Class of transformers by model type."""
_PAD = "<|pad|>"
"""The special token that fills up rows, if a tokenizer has it."""
_LLAMA_NAMES = (
    (r"^token_embedding\.", "model.embed_tokens."),
    (r"^final_norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^blocks\.", "model.layers."),
    (r"\.attention\.out_proj\.", ".self_attn.o_proj."),
    (r"\.attention\.", ".self_attn."),
    (r"\.feed_forward\.", ".mlp."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attention_norm\.", ".input_layernorm."),
)
_GPT2_NAMES = (
    (r"^token_embedding\.", "transformer.wte."),
    (r"^position_embedding\.", "transformer.wpe."),
    (r"^final_norm\.", "transformer.ln_f."),
    (r"^head\.", "lm_head."),
    (r"^blocks\.", "transformer.h."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.ffn_norm\.", ".ln_2."),
    (r"\.attention\.out_proj\.", ".attn.c_proj."),
    (r"\.feed_forward\.up_proj\.", ".mlp.c_fc."),
    (r"\.feed_forward\.down_proj\.", ".mlp.c_proj."),
)
_NEITHER = {
    "embed_norm": False, "attn_softcap": None, "logit_softcap": None, "value_embeddings": "none",
    "residual_scalars": False, "bigram_rows": None, "smear": False, "block": None,
}  # fmt: skip
"""Parts that no architecture of `CLASSES` has, with the values under which they are absent."""

_QK_GAINS = ("attention.q_norm.weight", "attention.k_norm.weight")


def architecture(shape: ModelConfig) -> tuple[str, ModelConfig]:
    """Find the model type of transformers that computes what a shape computes.

    Returns:
        The type, and the shape with the gains and biases that this type has and ours may lack.

    Raises:
        UserError: There is none; names every part in the way, and configs that do without.
    """
    parts = [
        f"{name}={getattr(shape, name)!r}"
        for name, value in _NEITHER.items()
        if getattr(shape, name) != value
    ]
    gpt2 = shape.norm == "layernorm" or shape.position == "learned"
    wanted: dict[str, tuple[str, ...]] = (
        {"norm": ("layernorm",), "position": ("learned",), "activation": ("gelu", "gelu_tanh")}
        if gpt2
        else {"norm": ("rmsnorm",), "position": ("rope",), "activation": ("swiglu",)}
    )
    parts += [
        f"{name}={getattr(shape, name)!r}"
        for name, values in wanted.items()
        if getattr(shape, name) not in values
    ]
    if gpt2:
        parts += [name for name in ("qk_norm",) if getattr(shape, name)]
        parts += [f"n_kv_head={shape.n_kv_head}"] if shape.kv_heads != shape.n_head else []
        parts += (
            [f"head_dim={shape.head_dim}"] if shape.head_size * shape.n_head != shape.width else []
        )
        parts += (
            [f"sliding_window={shape.sliding_window}"] if shape.sliding_window is not None else []
        )
        kind = "gpt2"
        written = replace(
            shape,
            norm_weight=True,
            norm_bias=True,
            qkv_bias=True,
            attn_out_bias=True,
            ffn_bias=True,
        )
    else:
        kind, written = _llama_like(shape)
        if kind != "llama" and shape.ffn_bias:
            parts.append(
                "ffn_bias=True with " + ("qk_norm" if shape.qk_norm else "sliding windows")
            )
        if kind in ("mistral", "qwen2") and shape.attn_out_bias:
            parts.append("attn_out_bias=True with sliding windows")
    if parts:
        raise UserError(
            "this network cannot be exported: no architecture of transformers has"
            f" {', '.join(parts)}. Train one that exists there from the start:"
            " configs/pretrain/llama_adamw.yaml, or --config configs/model/llama_*.yaml,"
            " qwen3_*.yaml, gpt2_*.yaml after another recipe"
        )
    return kind, written


def _llama_like(shape: ModelConfig) -> tuple[str, ModelConfig]:
    shape = replace(shape, norm_weight=True)
    bias = shape.qkv_bias or shape.attn_out_bias
    if shape.qk_norm:
        return "qwen3", replace(shape, qkv_bias=bias, attn_out_bias=bias)
    if shape.sliding_window is not None:
        if set(shape.window_pattern) == {"S"} and not bias:
            return "mistral", shape
        return "qwen2", replace(shape, qkv_bias=True)
    if shape.qkv_bias and not shape.attn_out_bias and not shape.ffn_bias:
        return "qwen2", shape
    return "llama", replace(shape, qkv_bias=bias, attn_out_bias=bias)


def to_config(
    shape: ModelConfig, *, dtype: str, bos_id: int, eos_id: int, pad_id: int | None
) -> dict[str, object]:
    """Build the content of config.json.

    Args:
        shape: Shape of the network.
        dtype: Type of the stored weights, such as bfloat16.
        bos_id: Id of the token that begins a document.
        eos_id: Id of the token that ends it.
        pad_id: Id of the token that fills up rows, if there is one.
    """
    kind, shape = architecture(shape)
    common = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": shape.init_std,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "use_cache": True,
        # transformers 5 reads the first name, 4 the second.
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return common | (_gpt2_config(shape) if kind == "gpt2" else _llama_config(shape, kind))


def _llama_config(shape: ModelConfig, kind: str) -> dict[str, object]:
    scaling = shape.rope_scaling
    rope: dict[str, object] = {"rope_type": "default"}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    config: dict[str, object] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.kv_heads,
        # Written in any case, because families differ in what they take where it is missing.
        "head_dim": shape.head_size,
        "intermediate_size": shape.ffn_size,
        "max_position_embeddings": shape.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        # transformers 4 reads the first two, 5 the third.
        "rope_theta": shape.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": shape.rope_theta},
        "attention_dropout": 0.0,
    }
    if kind in ("llama", "qwen3"):
        config["attention_bias"] = shape.qkv_bias
    if kind == "llama":
        config["mlp_bias"] = shape.ffn_bias
    if kind == "mistral":
        config["sliding_window"] = shape.sliding_window
    if kind in ("qwen2", "qwen3"):
        windows = [shape.window(layer) is not None for layer in range(shape.n_layer)]
        config |= {
            "use_sliding_window": any(windows),
            "sliding_window": shape.sliding_window,
            "max_window_layers": windows.index(True) if any(windows) else shape.n_layer,
            "layer_types": [
                "sliding_attention" if window else "full_attention" for window in windows
            ],
        }
    return config


def _gpt2_config(shape: ModelConfig) -> dict[str, object]:
    return {
        "n_embd": shape.width,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_inner": shape.ffn_size,
        "n_positions": shape.max_seq_len,
        "n_ctx": shape.max_seq_len,
        "activation_function": "gelu" if shape.activation == "gelu" else "gelu_new",
        "layer_norm_epsilon": shape.norm_eps,
        "resid_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }


def to_tensors(
    shape: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Name weights as transformers does; a tied head is left out, as its loaders expect.

    Architectures there have no scale of the logits, nor one of queries and keys: the final norm
    takes up the one, and the gains of the norms of queries and keys the other.

    Args:
        shape: Shape of the network.
        tensors: Its state dict.
        dtype: Type to round to; None keeps the types of the tensors.
    """
    kind, written = architecture(shape)
    with torch.device("meta"):
        expected = Transformer(written).state_dict()
    whole: dict[str, Tensor] = {}
    for name, like in expected.items():
        if name in tensors:
            whole[name] = tensors[name]
        else:  # transformers has a gain or a bias here that ours lacks: write ones or zeros
            whole[name] = (torch.ones if name.endswith("norm.weight") else torch.zeros)(like.shape)
        if name.startswith("final_norm.") and shape.logit_scale is not None:
            whole[name] = whole[name] * shape.logit_scale
        if name.endswith(_QK_GAINS) and shape.qk_scale is not None:
            whole[name] = whole[name] * shape.qk_scale
    named = (
        _gpt2_names(whole)
        if kind == "gpt2"
        else {rename_tensor(name, _LLAMA_NAMES): tensor for name, tensor in whole.items()}
    )
    return {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in named.items()}


def _gpt2_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", name)
        if match is None:
            # GPT-2 stores the matrices of its blocks with the input axis first.
            turned = tensor.ndim == 2 and name.startswith("blocks.")
            named[rename_tensor(name, _GPT2_NAMES)] = tensor.T if turned else tensor
        elif match[2] == "q":  # GPT-2 keeps queries, keys and values in one matrix
            parts = torch.cat(
                [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            )
            named[f"transformer.h.{match[1]}.attn.c_attn.{match[3]}"] = (
                parts.T if parts.ndim == 2 else parts
            )
    return named


def write_configs(
    folder: Path, shape: ModelConfig, language: ModelTokenizer, *, dtype: str
) -> None:
    """Write config.json and generation_config.json."""
    tokenizer = language.tokenizer
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    pad_id = tokenizer.special_tokens.get(_PAD)
    config = to_config(shape, dtype=dtype, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
    write_file(folder / HF_CONFIG, _json(config))
    generation = {
        "bos_token_id": bos_id,
        "eos_token_id": sorted(language.stop_ids),
        "pad_token_id": pad_id,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    write_file(folder / "generation_config.json", _json(generation))


def write_tokenizer(folder: Path, language: ModelTokenizer, *, length: int) -> None:
    """Write tokenizer and template as transformers 4 and 5 both read them.

    The template goes into the tokenizer's config and into a file of its own.

    Args:
        folder: The export.
        language: Tokenizer and template.
        length: Longest input of the network, in tokens.
    """
    language.save(folder)
    tokenizer = language.tokenizer
    config = json.loads((folder / CONFIG_FILENAME).read_text(encoding="utf-8"))
    names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    if _PAD in tokenizer.special_tokens:
        names["pad_token"] = _PAD
    extra = [token for token in tokenizer.special_tokens if token not in names.values()]
    config |= {**names, "additional_special_tokens": extra, "model_max_length": length}
    if language.template is not None:
        config["chat_template"] = language.template.source
    write_file(folder / CONFIG_FILENAME, _json(config))
    write_file(folder / MAP_FILENAME, _json({**names, "additional_special_tokens": extra}))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_tensors(
    tensors: Mapping[str, Tensor], folder: Path, *, max_shard_bytes: int
) -> list[str]:
    """Write safetensors: one file, or several with an index if one would be too large.

    Returns:
        The names of the files that hold weights.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    many = len(shards) > 1
    files = (
        [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        if many
        else [HF_WEIGHTS]
    )
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
        follow_umask(folder / file)
    if many:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {
                name: file for file, shard in zip(files, shards, strict=True) for name in shard
            },
        }
        (folder / HF_INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return files
