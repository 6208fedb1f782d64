"""The three families against transformers: the same numbers from the same weights, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.transformer import Transformer

transformers = pytest.importorskip(
    "transformers", reason="parity needs the dev extra (transformers)"
)

VOCAB, WIDTH, LAYERS = 61, 48, 3
# At the usual 0.02 attention is uniform and feed-forwards vanish: nothing would be tested.
RANDOM = {"initializer_range": 0.2}


@pytest.fixture(autouse=True)
def in_the_dtype_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes norms and angles in float32 whatever the model's dtype; the
    formulas are what we compare.
    """
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm, MistralRotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding

    def norm(self: Any, x: Tensor) -> Tensor:
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    def turn(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids[..., None].to(x) * self.inv_freq.to(x)
        return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

    for cls in (LlamaRMSNorm, MistralRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(cls, "forward", norm)
    for cls in (LlamaRotaryEmbedding, MistralRotaryEmbedding, Qwen3RotaryEmbedding):
        monkeypatch.setattr(cls, "forward", turn)


def scramble(model: nn.Module) -> None:
    """Gains and biases away from one and zero, so that a forgotten one shows."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name or "ln_" in name else 0.0, 0.2)


def rename_llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "model.embed_tokens.": "token_embedding.",
        "model.norm.": "final_norm.",
        "lm_head.": "head.",
        "model.layers.": "blocks.",
        "self_attn.o_proj": "attention.out_proj",
        "self_attn.": "attention.",
        "mlp.": "feed_forward.",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attention_norm",
    }
    return {rename(key, names): value for key, value in state.items()}


def rename_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "transformer.wte.": "token_embedding.",
        "transformer.wpe.": "position_embedding.",
        "transformer.ln_f.": "final_norm.",
        "lm_head.": "head.",
        "transformer.h.": "blocks.",
        "ln_1": "attention_norm",
        "ln_2": "ffn_norm",
        "attn.c_proj": "attention.out_proj",
        "mlp.c_fc": "feed_forward.up_proj",
        "mlp.c_proj": "feed_forward.down_proj",
    }
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if "attn.c_attn" in key:  # queries, keys and values in one matrix, stored input-first
            for letter, part in zip("qkv", value.chunk(3, dim=-1), strict=True):
                renamed[rename(key.replace("attn.c_attn", f"attention.{letter}_proj"), names)] = (
                    part.T if part.ndim == 2 else part
                )
        else:
            renamed[rename(key, names)] = value.T if value.ndim == 2 and "c_" in key else value
    return renamed


def rename(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


def assert_same(theirs: Any, config: ModelConfig, state: dict[str, Tensor]) -> None:
    ours = Transformer(config).double()
    if config.tie_embeddings:
        state.pop("head.weight", None)
    ours.load_state_dict({key: value for key, value in state.items() if "rotary" not in key})
    tokens_BT = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BTV = theirs(tokens_BT).logits
        logits_BTV = ours.logits(ours(tokens_BT))
    assert expected_BTV.std() > 0.5
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=0, atol=1e-10)
    # and packed into one row, each sequence a document
    doc_BT = torch.arange(2).repeat_interleave(40)[None]
    with torch.no_grad():
        packed_BTV = ours.logits(ours(tokens_BT.reshape(1, 80), doc_BT)).view_as(expected_BTV)
    torch.testing.assert_close(packed_BTV, expected_BTV, rtol=0, atol=1e-10)


def shape(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "n_layer": LAYERS,
        "width": WIDTH,
        "n_head": 4,
        "max_seq_len": 96,
        **changes,
    }


def build(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation="sdpa").double().eval()
    scramble(model)
    return model


SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=32
)


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "llama3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("kv_heads", "bias"), [(4, False), (2, True), (1, False)], ids=["mha", "gqa+bias", "mqa"]
)
def test_llama(kv_heads: int, bias: bool, tied: bool, scaling: RopeScaling | None) -> None:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500.0}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        intermediate_size=80,
        max_position_embeddings=96,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        attention_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=tied,
        **RANDOM,
    )
    theirs = build(transformers.LlamaForCausalLM, config)
    ours = ModelConfig(
        **shape(
            n_kv_head=kv_heads,
            ffn_width=80,
            rope_theta=500.0,
            rope_scaling=scaling,
            tie_embeddings=tied,
        ),
        qkv_bias=bias,
        attn_out_bias=bias,
        ffn_bias=bias,
    )
    assert_same(theirs, ours, rename_llama(theirs.state_dict()))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_qwen3(tied: bool) -> None:
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,  # not width / heads, as in the released models
        intermediate_size=80,
        max_position_embeddings=96,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=tied,
        **RANDOM,
    )
    theirs = build(transformers.Qwen3ForCausalLM, config)
    ours = ModelConfig(
        **shape(n_kv_head=2, head_dim=20, ffn_width=80, rope_theta=1000.0, tie_embeddings=tied),
        norm_eps=1e-6,
        qk_norm=True,
    )
    assert_same(theirs, ours, rename_llama(theirs.state_dict()))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_gpt2(activation: str) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=96,
        activation_function={"gelu_tanh": "gelu_new", "gelu": "gelu"}[activation],
        **RANDOM,
    )
    theirs = build(transformers.GPT2LMHeadModel, config)
    ours = ModelConfig(
        **shape(
            activation=activation,
            tie_embeddings=True,
            position="learned",
            norm="layernorm",
            norm_bias=True,
        ),
        qkv_bias=True,
        attn_out_bias=True,
        ffn_bias=True,
    )
    assert_same(theirs, ours, rename_gpt2(theirs.state_dict()))


def test_sliding_window_is_mistrals() -> None:
    config = transformers.MistralConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        max_position_embeddings=96,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        sliding_window=7,
        tie_word_embeddings=False,
        **RANDOM,
    )
    theirs = build(transformers.MistralForCausalLM, config)
    ours = ModelConfig(
        **shape(n_kv_head=2, ffn_width=80, rope_theta=500.0, sliding_window=7, window_pattern="S")
    )
    assert_same(theirs, ours, rename_llama(theirs.state_dict()))
