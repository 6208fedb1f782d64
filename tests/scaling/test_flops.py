"""FLOPs per token against torch's own counter, on the meta device."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.scaling.flops import flops_per_token

LLAMA3: dict[str, Any] = {"vocab_size": 128256, "n_kv_head": 8, "max_seq_len": 8192}
SHAPES: dict[str, tuple[ModelConfig, int]] = {
    "default": (ModelConfig(), 512),
    "tied": (ModelConfig(tie_embeddings=True, activation="relu2"), 256),
    "nanochat": (ModelConfig(value_embeddings="alternate", residual_scalars=True, embed_norm=True, qk_norm=True), 128),
    "gpt2": (ModelConfig(position="learned", activation="gelu", qkv_bias=True, ffn_bias=True, norm="layernorm"), 128),
    "wide heads": (ModelConfig(head_dim=128, n_kv_head=2), 128),
    "llama3 8b": (ModelConfig(n_layer=32, width=4096, n_head=32, ffn_width=14336, **LLAMA3), 8192),
    "llama3 70b": (ModelConfig(n_layer=80, width=8192, n_head=64, ffn_width=28672, **LLAMA3), 8192),
}


@pytest.mark.parametrize("name", SHAPES)
def test_training_flops_are_those_that_torch_counts(name: str) -> None:
    config, seq_len = SHAPES[name]
    with torch.device("meta"):
        model, tokens_BT = Transformer(config), torch.zeros(2, seq_len, dtype=torch.int64)
        counter = FlopCounterMode(display=False)
        with counter:
            F.cross_entropy(model.logits(model(tokens_BT)).flatten(0, 1), tokens_BT.flatten()).backward()
    assert counter.get_total_flops() / tokens_BT.numel() == flops_per_token(config, seq_len).training


def test_llama3_8b_at_8192() -> None:
    config, seq_len = SHAPES["llama3 8b"]
    flops = flops_per_token(config, seq_len)
    assert flops.training == 5.791285248e10
    assert flops.dense == 6 * (8_030_261_248 - 128256 * 4096 - 65 * 4096)
    assert flops.training - flops.causal == flops.causal - flops.dense
