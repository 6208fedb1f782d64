"""Norms and feed-forwards against their formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.layers import FeedForward, make_norm


def random_norm(**changes: Any) -> nn.Module:
    norm = make_norm(ModelConfig(norm_eps=0.1, **changes), 12).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_rmsnorm() -> None:
    x = torch.randn(3, 12, dtype=torch.float64)
    norm = random_norm()
    expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), expected * norm.weight)
    assert not list(random_norm(norm_weight=False).parameters())
    torch.testing.assert_close(random_norm(norm_weight=False)(x), expected)


def test_layernorm() -> None:
    x = torch.randn(3, 12, dtype=torch.float64)
    norm = random_norm(norm="layernorm", norm_bias=True)
    expected = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, unbiased=False, keepdim=True) + 0.1
    ).sqrt()
    torch.testing.assert_close(norm(x), expected * norm.weight + norm.bias)
    torch.testing.assert_close(random_norm(norm="layernorm", norm_weight=False)(x), expected)
    assert [name for name, _ in random_norm(norm="layernorm").named_parameters()] == ["weight"]


def test_a_norm_of_half_precision_input_with_a_full_precision_gain_returns_half() -> None:
    norm = random_norm().float()
    x = torch.randn(3, 12).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"])
def test_feed_forward(activation: Any, bias: bool) -> None:
    layer = FeedForward(
        ModelConfig(width=12, n_head=2, ffn_width=20, activation=activation, ffn_bias=bias)
    ).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    up = x @ layer.up_proj.weight.T + (layer.up_proj.bias if bias else 0)
    if layer.gate_proj is not None:
        gate = x @ layer.gate_proj.weight.T + (layer.gate_proj.bias if bias else 0)
        act = (
            gate * torch.sigmoid(gate)
            if activation == "swiglu"
            else F.gelu(gate, approximate="tanh")
        )
        middle = act * up
    elif activation == "relu2":
        middle = up.clamp(min=0) ** 2
    else:
        middle = F.gelu(up, approximate="tanh" if activation == "gelu_tanh" else "none")
    torch.testing.assert_close(
        layer(x), middle @ layer.down_proj.weight.T + (layer.down_proj.bias if bias else 0)
    )
