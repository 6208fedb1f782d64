"""Activation checkpointing changes what is kept, never the numbers."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lit_pretrain.errors import UserError
from lit_pretrain.model import transformer
from lit_pretrain.model.config import CHECKPOINTING, Checkpointing, ModelConfig, kept_within
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.scaling.memory import Layout, kept_for_recomputation, offloaded, peak
from lit_pretrain.stage.checks import check_offload

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
    on: Checkpointing,
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


@pytest.mark.parametrize("on", [*CHECKPOINTING[1:], 0.3, 0.7])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_the_same_in_fp64(name: str, on: Checkpointing) -> None:
    net, tokens_BT, doc_BT = small(name, torch.float64)
    plain, again = (gradients(net, tokens_BT, doc_BT, on=mode) for mode in (False, on))
    assert len(plain) == len(list(net.parameters()))
    for key, value in plain.items():
        assert value.abs().max() > 0, key
        torch.testing.assert_close(again[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("llama", True),
        ("llama", "products"),
        ("llama", 0.6),
        pytest.param("nanochat", 0.6, marks=pytest.mark.slow),
        pytest.param("nanochat", "attention", marks=pytest.mark.slow),
        pytest.param("nanochat", True, marks=pytest.mark.slow),
        pytest.param("nanochat", "products", marks=pytest.mark.slow),
    ],
)
def test_compiled_gradients_are_the_same(name: str, on: Checkpointing) -> None:
    net, tokens_BT, doc_BT = small(name, torch.float64)
    plain = gradients(net, tokens_BT, doc_BT, on=False)
    again = gradients(net, tokens_BT, doc_BT, on=on, compiled=True)
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-10, atol=1e-14, msg=key)


def kept_bytes(net: Transformer, tokens_BT: torch.Tensor, doc_BT: torch.Tensor) -> int:
    """Bytes that are allocated in a forward pass and live after it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        hidden_BTD = net(tokens_BT, doc_BT)
    hidden_BTD.sum().backward()
    return sum(event.self_cpu_memory_usage for event in seen.events())


def kept_by(checkpointing: Checkpointing, *, compiled: bool = False) -> int:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Transformer(KEEPING)
    tokens_BT = torch.randint(0, 128, (4, 256))
    net.checkpoint_activations(checkpointing)
    if compiled:
        net.compile_blocks()
    for _ in range(3 if compiled else 1):
        net(tokens_BT, torch.zeros_like(tokens_BT)).sum().backward()
    return kept_bytes(net, tokens_BT, torch.zeros_like(tokens_BT))


KEEPING = ModelConfig(vocab_size=128, n_layer=4, width=128, n_head=4, n_kv_head=2, ffn_width=352)


def planned(checkpointing: Checkpointing) -> float:
    layout = Layout(
        rows=4, seq_len=256, precision="32-true", checkpointing=checkpointing, device="cpu"
    )
    return KEEPING.n_layer * kept_for_recomputation(KEEPING, layout)


def test_what_a_mode_keeps_is_what_is_planned() -> None:
    kept = {mode: kept_by(mode) for mode in CHECKPOINTING}
    assert kept[False] > kept["products"] > kept["attention"] > kept[True]
    for mode in ("products", "attention"):
        assert kept[mode] - kept[True] == pytest.approx(planned(mode), rel=0.2)


BUDGETS = (0.05, 0.1, 0.35, 0.5, 0.75, 0.95)
ALL = 4 * 256 * 4 * (128 + 2 * 4 + 128 + 2 * 64 + 128 + 2 * 352)
"""Bytes that attention and all matrices but the last put out in a block."""


def test_a_budget_is_kept_and_used() -> None:
    """What is kept is what is planned, and a larger budget keeps more and computes less again."""
    least = kept_by(True)
    found = {}
    for budget in BUDGETS:
        kept = kept_by(budget) - least
        assert kept == pytest.approx(planned(budget), rel=0.2, abs=1000)
        assert planned(budget) <= budget * KEEPING.n_layer * ALL
        found[budget] = kept_within(KEEPING, budget)
    sizes = [kept.elements for kept in found.values()]
    assert sizes == sorted(sizes)
    assert found[0.05] == (False, (), 0, 1.0)
    assert found[0.1].products == ("k_proj",)  # or the values: attention takes 11 %
    again = [found[budget].recomputed for budget in BUDGETS if found[budget].attention]
    assert again == sorted(again, reverse=True)
    assert 0.5 > again[-1] > 0.1


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.5, 2.0])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(UserError, match=r"activation_checkpointing=.* between 0 and 1"):
        kept_within(KEEPING, budget)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["products", "attention", 0.5])
def test_what_a_compiled_mode_keeps_is_what_is_planned(mode: Checkpointing) -> None:
    """Beside the inputs of the blocks, which are counted uncompiled."""
    assert kept_by(mode, compiled=True) - kept_by(True) == pytest.approx(planned(mode), rel=0.2)


def test_offload_moves_the_inputs_of_blocks_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU they are moved to where they are."""
    moved: list[tuple[int, ...]] = []
    hooks = torch.autograd.graph.saved_tensors_hooks

    def counting(pin_memory: bool) -> Any:
        assert not pin_memory

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            moved.append(tuple(tensor.shape))
            return tensor.clone()

        return hooks(pack, lambda tensor: tensor)

    monkeypatch.setattr(transformer, "save_on_cpu", counting)
    net, tokens_BT, doc_BT = small("llama", torch.float64)
    plain = gradients(net, tokens_BT, doc_BT, on=False)
    found = gradients(net, tokens_BT, doc_BT, on="offload")
    assert [shape for shape in moved if shape != (0,)] == 3 * [(2, 32, 64)]
    for name, gradient in plain.items():
        assert torch.equal(found[name], gradient), name


def test_a_plan_counts_what_offload_moves() -> None:
    layout = Layout(rows=4, seq_len=256, checkpointing=True)
    there = dataclasses.replace(layout, checkpointing="offload")
    bytes_ = 4 * 256 * 128 * 4 * KEEPING.n_layer  # the stream is in fp32
    assert offloaded(KEEPING, there) == bytes_
    assert offloaded(KEEPING, layout) == 0
    assert peak(KEEPING, layout).loss - peak(KEEPING, there).loss == bytes_


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_offload_needs_a_gpu(device: str) -> None:
    check_offload("offload", torch.device("cuda"))
    check_offload(True, torch.device(device))
    with pytest.raises(UserError, match=rf"offload moves .* computes on {device}: use true"):
        check_offload("offload", torch.device(device))


def test_evaluation_and_generation_are_not_touched() -> None:
    net, tokens_BT, doc_BT = small("llama", torch.float64)
    with torch.no_grad():
        plain = net(tokens_BT, doc_BT)
        net.checkpoint_activations(True)
        torch.testing.assert_close(net(tokens_BT, doc_BT), plain, rtol=0, atol=0)
