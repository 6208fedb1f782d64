"""The JSON that others write beside a model: a value of another kind is named, in every field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_pretrain.chat.template import template_of
from lit_pretrain.checkpoint.hf_import import read_shape
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.checkpoint.peft_format import from_peft, read_peft
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.tokenizer.tokenizer_files import stated_separators

VALUES: list[Any] = [None, True, "x", "", -1, 0, 1.5, 10**30, [], [1], ["x"], {}, {"a": 1}]
LLAMA = {
    "vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "hidden_act": "silu",
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1,
    "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0,
    "layer_types": ["sliding_attention"], "rope_parameters": None,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip
GPT2 = {
    "vocab_size": 64, "n_layer": 1, "n_embd": 16, "n_head": 2, "n_inner": 32, "n_positions": 32,
    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "scale_attn_weights": True,
    "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {name: LLAMA for name in ("llama", "mistral", "qwen2", "qwen3")} | {"gpt2": GPT2}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_a_config_with_every_kind_of_value(tmp_path: Path, family: str) -> None:
    """Each is a shape of ours, or a mistake that names the file; nothing else is raised."""
    fields = {"model_type": family, **FAMILIES[family]}
    places = [(name,) for name in fields]
    places += [("rope_scaling", name) for name in fields.get("rope_scaling", {})]
    refused = 0
    for place in places:
        for value in VALUES:
            changed = json.loads(json.dumps(fields))
            group = changed if len(place) == 1 else changed[place[0]]
            group[place[-1]] = value
            (tmp_path / "config.json").write_text(json.dumps(changed))
            try:
                model_config(read_shape(tmp_path))
            except UserError:
                refused += 1
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert isinstance(model_config(read_shape(tmp_path)), ModelConfig)
    assert refused > 5 * len(places)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["bos_token", "eos_token"])
@pytest.mark.parametrize("value", [["</s>"], 2, 1.5, True, {"content": 2}, {"content": ["</s>"]}])
def test_a_token_that_is_no_spelling(tmp_path: Path, file: str, key: str, value: Any) -> None:
    (tmp_path / file).write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=rf"{file}: {key} is .* must be the spelling of one token"):
        stated_separators(tmp_path)


@pytest.mark.parametrize("value", [7, True, ["x"], [{"name": "default"}], {"a": "b"}, [["a"]]])
def test_a_template_that_is_no_text(tmp_path: Path, value: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template is"):
        template_of(tmp_path)


def test_every_field_of_an_adapter_with_every_kind_of_value(tmp_path: Path) -> None:
    shape = ModelConfig(vocab_size=64, n_layer=1, width=16, n_head=2, max_seq_len=32)
    fields = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "use_rslora": False,
        "use_dora": False, "alpha_pattern": {}, "init_lora_weights": True, "bias": "none",
    }  # fmt: skip
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    refused: list[str] = []
    values = [*VALUES, {"(": 1}, {"q_proj": "x"}]
    for field in [None, *fields]:
        for value in values if field is not None else values[:1]:
            changed = fields if field is None else {**fields, field: value}
            (tmp_path / "adapter_config.json").write_text(json.dumps(changed))
            try:
                from_peft(shape, *read_peft(tmp_path), where=str(tmp_path))
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 50
    assert all(error.startswith(str(tmp_path)) for error in refused)
