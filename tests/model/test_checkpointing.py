"""Activation checkpointing changes what is kept, never the numbers."""

from typing import Any

import pytest
import torch

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_head": 2},
    "nanochat": {
        "activation": "relu2",
        "qk_norm": True,
        "embed_norm": True,
        "value_embeddings": "alternate",
        "residual_scalars": True,
    },
    "dropout": {"dropout": 0.2},
}


def gradients(
    net: Transformer,
    tokens_BT: torch.Tensor,
    doc_BT: torch.Tensor,
    *,
    on: bool,
    compiled: bool = False,
) -> dict[str, torch.Tensor]:
    net.checkpoint_activations(on)
    net.zero_grad()
    torch.manual_seed(5)

    if compiled:
        net.compile_blocks()
    net.logits(net(tokens_BT, doc_BT)).square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def small(name: str, dtype: torch.dtype) -> tuple[Transformer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = Transformer(
        ModelConfig(vocab_size=97, n_layer=3, width=64, n_head=4, max_seq_len=32, **SHAPES[name])
    ).to(dtype)
    return net, torch.randint(0, 97, (2, 32)), torch.arange(32)[None].expand(2, 32) // 11


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_the_same_in_fp64(name: str) -> None:
    net, tokens_BT, doc_BT = small(name, torch.float64)
    plain, again = (gradients(net, tokens_BT, doc_BT, on=on) for on in (False, True))
    assert len(plain) == len(list(net.parameters()))
    for key, value in plain.items():
        assert value.abs().max() > 0, key
        torch.testing.assert_close(again[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", ["llama", "nanochat"])
def test_compiled_gradients_are_the_same(name: str) -> None:
    net, tokens_BT, doc_BT = small(name, torch.float64)
    plain = gradients(net, tokens_BT, doc_BT, on=False)
    again = gradients(net, tokens_BT, doc_BT, on=True, compiled=True)
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-10, atol=1e-14, msg=key)


def test_less_is_kept() -> None:
    net, tokens_BT, doc_BT = small("llama", torch.float32)
    kept = []
    for on in (False, True):
        net.checkpoint_activations(on)
        seen: dict[int, int] = {}

        def pack(x: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            net(tokens_BT, doc_BT)
        kept.append(sum(seen.values()))
    assert kept[1] < 0.5 * kept[0]


def test_evaluation_and_generation_are_not_touched() -> None:
    net, tokens_BT, doc_BT = small("llama", torch.float64)
    with torch.no_grad():
        plain = net(tokens_BT, doc_BT)
        net.checkpoint_activations(True)
        torch.testing.assert_close(net(tokens_BT, doc_BT), plain, rtol=0, atol=0)
