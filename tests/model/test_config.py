"""ModelConfig: what it refuses, what it derives, and that its counts are those of the built
model.
"""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.roles import parameter_roles


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 0}, ["n_layer=0", "positive"]),
        ({"vocab_size": -1}, ["vocab_size=-1"]),
        ({"width": 100}, ["width=100", "n_head=3", "head_dim"]),
        ({"n_kv_head": 4}, ["n_kv_head=4", "n_head=3"]),
        ({"width": 30, "n_head": 6}, ["rotary", "5"]),
        ({"dropout": 1.0}, ["dropout=1.0"]),
        ({"norm_eps": 0.0}, ["norm_eps=0.0"]),
        ({"rope_theta": float("nan")}, ["rope_theta=nan"]),
        ({"logit_softcap": -3.0}, ["logit_softcap=-3.0"]),
        ({"norm_bias": True}, ["norm_bias", "layernorm"]),
        ({"norm": "batchnorm"}, ["norm='batchnorm'", "rmsnorm, layernorm"]),
        ({"position": "learned", "rope_scaling": RopeScaling()}, ["rope_scaling", "'learned'"]),
        ({"sliding_window": 8}, ["sliding_window=8", "window_pattern='L'"]),
        ({"window_pattern": "SL"}, ["sliding_window=None", "window_pattern='SL'"]),
        ({"window_pattern": "LX"}, ["window_pattern='LX'"]),
        ({"window_pattern": ""}, ["window_pattern=''"]),
        ({"attention": "varlen", "attn_softcap": 50.0}, ["varlen", "50.0"]),
        (
            {"width": 24, "n_head": 6, "value_embeddings": "alternate"},
            ["value_embeddings", "width=24"],
        ),
        ({"qk_scale": 1.2}, ["qk_scale=1.2", "qk_norm: true"]),
        ({"value_gate_channels": 12}, ["value_gate_channels=12", "value_embeddings: alternate"]),
        ({"value_gate_scale": 3.0}, ["value_gate_scale=3.0", "value_embeddings: alternate"]),
        ({"value_gate_init": 0.02}, ["value_gate_init=0.02", "value_embeddings: alternate"]),
        ({"residual_scale_init": (1.0, 1.0)}, ["residual_scale_init", "residual_scalars: true"]),
        ({"embedding_scale_init": (0.1, 0.1)}, ["embedding_scale_init", "residual_scalars: true"]),
        (
            {"residual_scalars": True, "residual_scale_init": (1.0, -1.0)},
            ["residual_scale_init=(1.0, -1.0)", "not negative"],
        ),
        (
            {"residual_scalars": True, "embedding_scale_init": [0.1]},
            ["embedding_scale_init=[0.1]", "two numbers"],
        ),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_its_values(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        ModelConfig(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"factor": 0.5}, "factor=0.5"),
        ({"low_freq_factor": 4.0}, "low_freq_factor=4.0"),
        ({"original_max_seq_len": 0}, "original_max_seq_len=0"),
    ],
)
def test_a_stretch_that_cannot_be_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        RopeScaling(**changes)


def test_first_values_of_a_saved_config_are_those_of_a_new_one() -> None:
    """YAML and JSON have lists, which no frozen config could be hashed with."""
    one, two = (
        ModelConfig(residual_scalars=True, residual_scale_init=ends)
        for ends in ((1.15, 1.05), [1.15, 1.05])
    )
    assert one == two
    assert hash(one) == hash(two)


def test_derived_sizes() -> None:
    config = ModelConfig(width=384, n_head=6)
    assert (config.kv_heads, config.head_size, config.ffn_size) == (6, 64, 1024)
    assert ModelConfig(width=576, n_head=9).ffn_size == 1536  # 8/3 × 576 exactly, a multiple of 64
    assert ModelConfig(width=400, n_head=8).ffn_size == 1088  # 1066.7 rounded up
    assert ModelConfig(activation="relu2").ffn_size == 4 * 192
    assert ModelConfig(ffn_width=1000).ffn_size == 1000
    assert ModelConfig(head_dim=20).head_size == 20


def test_derived_sizes_follow_a_changed_field() -> None:
    assert dataclasses.replace(ModelConfig(), width=768, n_head=12).ffn_size == 2048


def test_the_pattern_repeats_over_the_layers() -> None:
    config = ModelConfig(n_layer=5, sliding_window=16, window_pattern="SSL")
    assert [config.window(layer) for layer in range(5)] == [16, 16, None, 16, 16]


@pytest.mark.parametrize("n_layer", [1, 4, 5])
def test_value_embeddings_stand_on_every_other_layer_and_the_last(n_layer: int) -> None:
    config = ModelConfig(n_layer=n_layer, value_embeddings="alternate")
    layers = [layer for layer in range(n_layer) if config.has_value_embedding(layer)]
    assert layers == list(range((n_layer - 1) % 2, n_layer, 2))


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    norm = draw(st.sampled_from(["rmsnorm", "layernorm"]))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 50)),
        n_layer=draw(st.integers(1, 4)),
        width=draw(st.sampled_from([32, 48])),
        n_head=4,
        n_kv_head=draw(st.sampled_from([None, 1, 2, 4])),
        head_dim=draw(st.sampled_from([None, 10])),
        ffn_width=draw(st.sampled_from([None, 33])),
        max_seq_len=draw(st.integers(1, 40)),
        norm=norm,
        norm_weight=draw(st.booleans()),
        norm_bias=norm == "layernorm" and draw(st.booleans()),
        embed_norm=draw(st.booleans()),
        position=(position := draw(st.sampled_from(["rope", "learned", "none"]))),
        qk_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"])),
        qkv_bias=draw(st.booleans()),
        attn_out_bias=draw(st.booleans()),
        ffn_bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        value_embeddings=(value_embeddings := draw(st.sampled_from(["none", "alternate"]))),
        value_gate_channels=None
        if value_embeddings == "none"
        else draw(st.sampled_from([None, 12])),
        residual_scalars=draw(st.booleans()),
        bigram_rows=draw(st.sampled_from([None, 70])),
        smear=draw(st.booleans()) and position != "learned",
    )


@settings(max_examples=100)
@given(configs())
def test_counts_are_those_of_the_built_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    sizes: dict[str, int] = {}
    roles = parameter_roles(model)
    for name, parameter in model.named_parameters():
        sizes[roles[name]] = sizes.get(roles[name], 0) + parameter.numel()
    counts = count_parameters(config)
    tables = sizes.get("embedding", 0) + sizes.get("value_embedding", 0)
    assert counts.total == sum(sizes.values())
    assert counts.embedding == tables
    assert counts.non_embedding == counts.total - tables
    assert counts.matmul == sizes.get("matrix", 0) + config.vocab_size * config.width
