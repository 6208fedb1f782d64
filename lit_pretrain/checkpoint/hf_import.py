"""Import of a Hugging Face model folder as a shape and weights of ours.

Field and tensor names are those of transformers 5 (and of 4, where they differ). What a family can
do and we cannot is refused, never ignored: a network that is almost the same gives almost the same
numbers, and nobody notices.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_pretrain.checkpoint.layout import HF_CONFIG, read_json
from lit_pretrain.errors import UserError
from lit_pretrain.files import check_plain_names

HfConfig = Mapping[str, Any]
"""Content of config.json, as somebody else wrote it."""
ShapeFields = dict[str, Any]
"""Fields of our `ModelConfig`, by name."""

HF_WEIGHTS = "model.safetensors"
HF_INDEX = "model.safetensors.index.json"

_LLAMA_NAMES = (
    (r"^model\.embed_tokens\.", "token_embedding."),
    (r"^model\.norm\.", "final_norm."),
    (r"^lm_head\.", "head."),
    (r"^model\.layers\.", "blocks."),
    (r"\.self_attn\.o_proj\.", ".attention.out_proj."),
    (r"\.self_attn\.", ".attention."),
    (r"\.mlp\.", ".feed_forward."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.input_layernorm\.", ".attention_norm."),
)
_GPT2_NAMES = (
    (r"^transformer\.", ""),
    (r"^wte\.", "token_embedding."),
    (r"^wpe\.", "position_embedding."),
    (r"^ln_f\.", "final_norm."),
    (r"^lm_head\.", "head."),
    (r"^h\.", "blocks."),
    (r"\.ln_1\.", ".attention_norm."),
    (r"\.ln_2\.", ".ffn_norm."),
    (r"\.attn\.c_proj\.", ".attention.out_proj."),
    (r"\.mlp\.c_fc\.", ".feed_forward.up_proj."),
    (r"\.mlp\.c_proj\.", ".feed_forward.down_proj."),
)
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(bias|masked_bias)$")
"""Tables, not weights, that old releases of transformers stored with them."""


def read_shape(path: Path) -> ShapeFields:
    """Read the shape of the network in a Hugging Face folder.

    Raises:
        UserError: We do not have the family, or something that its config asks for; names the field
            and its value.
    """
    file = path / HF_CONFIG
    config = read_json(file)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _SHAPES:
        raise UserError(
            f"{file}: model_type={family!r} cannot be imported; known are {', '.join(_SHAPES)}"
        )
    quantised = config.get("quantization_config", config.get("compression_config"))
    if quantised or (path / "hf_quant_config.json").is_file():
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"{file}: quantization_config{f' ({method})' if method else ''} says that the weights"
            " are quantised; they cannot be imported, because without their scales they are other"
            " numbers. Download the model in bf16 or fp32, or save it dequantised"
        )
    _check_kinds(config, file)
    try:
        return _SHAPES[family](config, file)
    except KeyError as error:
        raise UserError(f"{file}: field {error} is missing, which every {family} has") from None


_LARGEST = {"num_hidden_layers": 10_000, "n_layer": 10_000}
"""More layers than any network has would take hours to build; other sizes go up to 2³¹."""
_COUNTS = (
    "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "max_position_embeddings", "sliding_window",
    "max_window_layers", "n_layer", "n_embd", "n_head", "n_inner", "n_positions",
    "original_max_position_embeddings",
)  # fmt: skip
_NUMBERS = (
    "rms_norm_eps", "layer_norm_epsilon", "rope_theta", "factor", "low_freq_factor",
    "high_freq_factor",
)  # fmt: skip
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_WORDS = ("hidden_act", "activation_function", "rope_type", "type")
_MAY_BE_NULL = frozenset(
    {"head_dim", "num_key_value_heads", "n_inner", "sliding_window", "layer_types", "rope_scaling"}
    | {"rope_parameters", "max_window_layers"}
)


def _check_kinds(config: HfConfig, file: Path, where: str = "") -> None:
    """Refuse fields whose values are of another kind than the field, or without bound.

    Raises:
        UserError: Names the field, what was found and what it must be.
    """

    def refuse(field: str, wanted: str) -> None:
        raise UserError(
            f"{file}: {where}{field}={_short(config[field])} must be {wanted}; download the model"
            " again, or correct it"
        )

    for field, value in config.items():
        if value is None and field in _MAY_BE_NULL:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if field in _COUNTS:
            largest = _LARGEST.get(field, 2**31)
            if not (number and isinstance(value, int) and 0 <= value <= largest):
                refuse(field, f"a whole number of at most {largest:,}")
        elif field in _NUMBERS and not (number and 0 < value < 1e30):
            refuse(field, "a positive number")
        elif field in _SWITCHES and not isinstance(value, bool):
            refuse(field, "true or false")
        elif field in _WORDS and not isinstance(value, str):
            refuse(field, "a word")
        elif field == "layer_types" and not (
            isinstance(value, list) and all(isinstance(kind, str) for kind in value)
        ):
            refuse(field, "a list of words")
        elif field in ("rope_scaling", "rope_parameters"):
            if not isinstance(value, dict):
                refuse(field, "an object")
            _check_kinds(value, file, f"{field}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict of our network from a Hugging Face folder, in the dtypes of its files.

    Raises:
        UserError: A file is missing or damaged.
    """
    config = read_json(path / HF_CONFIG)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as content:
                tensors |= {
                    name: content.get_tensor(name)
                    for name in content.keys()  # noqa: SIM118  # it is no mapping
                    if not _BUFFERS.search(name)
                }
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is missing or damaged ({error}); download the model again"
            ) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _WEIGHT_DTYPES:
            raise UserError(
                f"{path}: the tensor {name} is of {str(tensor.dtype).removeprefix('torch.')}, as"
                " quantised weights are; they cannot be imported, because without their scales"
                " they are other numbers. Download the model in bf16 or fp32"
            )
    renamed = (
        _rename_gpt2(tensors)
        if config["model_type"] == "gpt2"
        else {rename_tensor(k, _LLAMA_NAMES): v for k, v in tensors.items()}
    )
    if read_shape(path)["tie_embeddings"]:
        renamed.pop("head.weight", None)  # some files hold it twice
    return renamed


def weight_files(path: Path) -> list[Path]:
    """List the files that hold the weights of a Hugging Face folder.

    Raises:
        UserError: There are none, or the index names one that is not there.
    """
    index = path / HF_INDEX
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
            raise UserError(
                f"{index} has no weight_map from tensors to files; download the model again"
            )
        names = sorted(set(named.values()))
        # The index comes from elsewhere, and none of its names may lead out of the folder.
        check_plain_names(names, str(index))
        for name in names:
            if not (path / name).is_file():
                raise UserError(
                    f"{index} names {name}, which is not there; download the model again"
                )
        return [path / name for name in names]
    if (path / HF_WEIGHTS).is_file():
        return [path / HF_WEIGHTS]
    raise UserError(
        f"{path} holds neither {HF_WEIGHTS} nor {HF_INDEX}; save the model with safetensors"
        " (`save_pretrained` does)"
    )


def rename_tensor(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """Apply all (regular expression, replacement) pairs to the name of a tensor, in their order."""
    for old, new in names:
        key = re.sub(old, new, key)
    return key


def _rename_gpt2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        # GPT-2 stores its matrices input first, and queries, keys and values as one.
        stored = (
            value.T.contiguous()
            if value.ndim == 2 and re.search(r"\.c_(attn|proj|fc)\.", key)
            else value
        )
        if ".attn.c_attn." in key:
            for letter, part in zip("qkv", stored.chunk(3), strict=True):
                own = key.replace(".attn.c_attn.", f".attention.{letter}_proj.")
                renamed[rename_tensor(own, _GPT2_NAMES)] = part
        else:
            renamed[rename_tensor(key, _GPT2_NAMES)] = stored
    return renamed


# ------------------------------------------------------------------ shapes


def _llama_like(config: HfConfig, file: Path) -> ShapeFields:
    """Read what Llama, Mistral, Qwen2 and Qwen3 have in common."""
    _require(config, file, "hidden_act", "silu")
    rope = {
        "rope_theta": 10000.0,
        **{k: config[k] for k in ("rope_theta",) if k in config},
        **(config.get("rope_scaling") or {}),
    }
    rope |= config.get("rope_parameters") or {}  # transformers 5
    shape: ShapeFields = {
        "vocab_size": config["vocab_size"],
        "n_layer": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_kv_head": config.get("num_key_value_heads", config["num_attention_heads"]),
        "head_dim": config.get("head_dim"),
        "ffn_width": config["intermediate_size"],
        "max_seq_len": config["max_position_embeddings"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": float(rope["rope_theta"]),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "activation": "swiglu",
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        shape["rope_scaling"] = {
            "factor": rope["factor"],
            "low_freq_factor": rope["low_freq_factor"],
            "high_freq_factor": rope["high_freq_factor"],
            "original_max_seq_len": rope["original_max_position_embeddings"],
        }
    elif kind != "default":
        raise UserError(f"{file}: rope type {kind!r} is not one of ours (default, llama3)")
    return shape


def _llama(config: HfConfig, file: Path) -> ShapeFields:
    _require(config, file, "pretraining_tp", 1)
    bias = config.get("attention_bias", False)
    return _llama_like(config, file) | {
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "ffn_bias": config.get("mlp_bias", False),
    }


def _mistral(config: HfConfig, file: Path) -> ShapeFields:
    shape = _llama_like(config, file)
    if config.get("sliding_window") is not None:
        shape |= {"sliding_window": config["sliding_window"], "window_pattern": "S"}
    return shape


def _qwen2(config: HfConfig, file: Path) -> ShapeFields:
    return _llama_like(config, file) | {"qkv_bias": True} | _qwen_windows(config)


def _qwen3(config: HfConfig, file: Path) -> ShapeFields:
    bias = config.get("attention_bias", False)
    shape = (
        _llama_like(config, file)
        | {"qk_norm": True, "qkv_bias": bias, "attn_out_bias": bias}
        | _qwen_windows(config)
    )
    # The default of Qwen3's own config; it does not follow from the width.
    return shape | {"head_dim": config.get("head_dim", 128)}


def _qwen_windows(config: HfConfig) -> ShapeFields:
    if not config.get("use_sliding_window", False) or config.get("sliding_window") is None:
        return {}
    first = config.get("max_window_layers", 28)  # transformers: layers from here on slide
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention"
        for layer in range(config["num_hidden_layers"])
    ]
    pattern = "".join("S" if kind == "sliding_attention" else "L" for kind in kinds)
    return (
        {"sliding_window": config["sliding_window"], "window_pattern": pattern}
        if "S" in pattern
        else {}
    )


def _gpt2(config: HfConfig, file: Path) -> ShapeFields:
    _require(config, file, "scale_attn_weights", True)
    _require(config, file, "scale_attn_by_inverse_layer_idx", False)
    _require(config, file, "add_cross_attention", False)
    activations = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    activation = config.get("activation_function", "gelu_new")
    if activation not in activations:
        raise UserError(
            f"{file}: activation_function={activation!r} is not one of ours"
            f" ({', '.join(activations)})"
        )
    return {
        "vocab_size": config["vocab_size"],
        "n_layer": config["n_layer"],
        "width": config["n_embd"],
        "n_head": config["n_head"],
        "ffn_width": config.get("n_inner"),
        "max_seq_len": config["n_positions"],
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "position": "learned",
        "activation": activations[activation],
        "qkv_bias": True,
        "attn_out_bias": True,
        "ffn_bias": True,
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


_SHAPES: dict[str, Callable[[HfConfig, Path], ShapeFields]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
}


def _require(config: HfConfig, file: Path, field: str, value: Any) -> None:
    found = config.get(field, value)
    if found != value:
        raise UserError(f"{file}: {field}={found!r} is not one of ours; only {value!r} is")
