"""Observation: its sums against plain ones over what hooks and dense formulas give."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.kernels import ProductKernel, softcap
from lit_pretrain.model.observation import PLACES, Observation, sums_of
from lit_pretrain.model.transformer import Transformer

LAYERS, B, T = 4, 3, 24
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"n_kv_head": 2},
    "normed": {"qk_norm": True, "n_kv_head": 1},
    "windows": {"sliding_window": 5, "window_pattern": "SL"},
    "capped": {"attn_softcap": 0.05},
    "learned": {"position": "learned", "qkv_bias": True},
    "bf16": {"qk_norm": True},
    "all": {
        "n_kv_head": 2, "qk_norm": True, "sliding_window": 5, "window_pattern": "SL",
        "attn_softcap": 0.5, "residual_scalars": True,
    },
}  # fmt: skip


def plain_sums(values: list[Tensor]) -> list[float]:
    flat = torch.cat([value.detach().double().flatten() for value in values])
    return [flat.square().sum().item(), flat.numel(), flat.abs().max().item()]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_plain_hooks(
    shape: str, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        n_layer=LAYERS, width=32, n_head=4, max_seq_len=T, vocab_size=64, attention="matmul",
        init="gpt2", init_std=0.3, **SHAPES[shape],
    )  # fmt: skip
    net = Transformer(config)
    seen: dict[str, list[list[Tensor]]] = {place: [[] for _ in net.blocks] for place in PLACES}
    attend = ProductKernel.__call__

    def dense(self: ProductKernel, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Keep all visible scores, from the definition and the mask of the kernel."""
        k_BSHK = k.double().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        scores = torch.einsum("bthk,bshk->bhts", q.double(), k_BSHK) / q.shape[-1] ** 0.5
        scores = scores if self.cap is None else softcap(scores, self.cap)
        mask = self.masks[window]
        assert mask is not None
        calls.append(scores[mask.expand_as(scores)])
        return attend(self, q, k, v, window)

    calls: list[Tensor] = []
    monkeypatch.setattr(ProductKernel, "__call__", dense)
    observation = Observation(net)
    for layer, block in enumerate(net.blocks):
        for place in PLACES[:3]:
            module = block if place == "block" else getattr(block, place)
            module.register_forward_hook(
                lambda m, i, out, kept=seen[place][layer]: kept.append(out.detach())
            )
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=shape == "bf16")
    net(torch.randint(64, (B, T)), None)  # not yet
    observation.begin()
    calls.clear()
    for kept in seen.values():
        for its in kept:
            its.clear()
    doc_BT = torch.tensor([7, 1, 11]).repeat_interleave(T // 3).expand(B, T) if documents else None
    for _ in range(2):  # micro-batches
        with half:
            net(torch.randint(64, (B, T)), doc_BT)
    found = observation.end()
    with torch.no_grad():
        net(torch.randint(64, (B, T)), doc_BT)
    assert torch.equal(observation.end(), found)
    for layer in range(LAYERS):
        seen["attention_logits"][layer] = calls[layer : 2 * LAYERS : LAYERS]
        for p, place in enumerate(PLACES):
            expected = plain_sums(seen[place][layer][:2])
            assert found[layer, p].tolist() == pytest.approx(expected, rel=1e-6), place


def test_scores_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Transformer(ModelConfig(n_layer=1, width=16, n_head=2, max_seq_len=T, vocab_size=8))
    found = []
    for chunk in (10**6, 50):
        monkeypatch.setattr("lit_pretrain.model.observation.CHUNK_SCORES", chunk)
        observation = Observation(net)
        observation.begin()
        net(torch.arange(T)[None] % 8)
        found.append(observation.end()[0, 3])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows_in_both_figures(value: float) -> None:
    x = torch.ones(4, 5)
    x[1, 2] = value
    squares, count, largest = sums_of(x).tolist()
    assert count == 20
    assert not torch.tensor([squares, largest]).isfinite().any()


def test_one_sum_over_many_numbers_is_exact_to_seven_digits() -> None:
    x = torch.rand(3000, 1024) + 0.5
    expected = x.double().square().sum().item()
    assert sums_of(x)[0].item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_compiled_blocks_compute_the_same_bits(dtype: torch.dtype, dropout: float) -> None:
    config = ModelConfig(
        n_layer=3, width=32, n_head=4, n_kv_head=2, max_seq_len=T, vocab_size=64, qk_norm=True,
        dropout=dropout, init="gpt2",
    )  # fmt: skip
    results = []
    for observed in (False, True):
        torch.manual_seed(0)
        net = Transformer(config)
        net.compile_blocks(fullgraph=True)  # a break would raise
        observation = Observation(net) if observed else None
        losses = []
        for step in range(3):
            torch.manual_seed(step)
            if observation is not None and step == 1:
                observation.begin()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                hidden_BTD = net(torch.randint(64, (B, T)))
            loss = hidden_BTD.float().square().mean() + hidden_BTD.float().mean()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for parameter in net.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
            if observation is not None and step == 1:
                counts = observation.end()[:, :, 1]
                inner = [0.0] * 2 if dropout else [B * T * 32.0] * 2
                scores = B * 4 * T * (T + 1) / 2
                assert counts.tolist() == [[B * T * 32, *inner, scores]] * 3
        results.append((losses, {n: p.detach().clone() for n, p in net.named_parameters()}))
    (plain, before), (watched, after) = results
    assert plain == watched
    assert all(torch.equal(before[name], after[name]) for name in before)
