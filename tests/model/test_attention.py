"""The cache: tokens fed in any pieces give the hidden states of the whole sequence."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.model.attention import KVCache
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 23,
    "n_layer": 3,
    "width": 32,
    "n_head": 4,
    "n_kv_head": 2,
    "max_seq_len": 64,
    "init_std": 0.4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"qk_norm": True, "head_dim": 10},
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "norm_bias": True,
        "activation": "gelu",
        "qkv_bias": True,
    },
    "windows": {"sliding_window": 5, "window_pattern": "SSL"},
    "windows+cap": {
        "sliding_window": 3,
        "window_pattern": "S",
        "attn_softcap": 2.0,
        "logit_softcap": 5.0,
    },
    "nanochat": {
        "value_embeddings": "alternate",
        "residual_scalars": True,
        "embed_norm": True,
        "activation": "relu2",
        "bigram_rows": 40,
        "smear": True,
    },
}


def build(variant: str) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SMALL, **VARIANTS[variant]})).double()
    if model.bigram_embedding is not None:  # zero at first
        model.bigram_embedding.weight.data.normal_(0.0, 4.0)
    if model.smear_D is not None:
        model.smear_D.data.normal_()
    return model


@torch.no_grad()
@settings(max_examples=40)
@given(st.sampled_from(sorted(VARIANTS)), st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_cached_logits_are_uncached_logits(variant: str, pieces: list[int]) -> None:
    model = build(variant)
    tokens_BT = torch.randint(23, (2, sum(pieces)))
    cache = KVCache(model.config, 2, 64, dtype=torch.float64)
    outputs, start = [], 0
    for piece in pieces:
        outputs.append(model.logits(model(tokens_BT[:, start : start + piece], cache=cache)))
        start += piece
    torch.testing.assert_close(
        torch.cat(outputs, 1), model.logits(model(tokens_BT)), rtol=0, atol=1e-10
    )


@torch.no_grad()
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_rows_of_different_lengths_do_not_see_each_others_padding(variant: str) -> None:
    model = build(variant)
    lengths = [7, 1, 12]
    prompts_BT, next_BT = torch.randint(23, (3, 12)), torch.randint(23, (3, 8))
    cache = KVCache(model.config, 3, 20, dtype=torch.float64)
    prefill = model(prompts_BT, cache=cache)
    cache.truncate(lengths)
    steps = torch.cat([model(next_BT[:, i : i + 1], cache=cache) for i in range(8)], 1)
    for row, length in enumerate(lengths):
        whole = model(torch.cat((prompts_BT[row, :length], next_BT[row]))[None])[0]
        torch.testing.assert_close(prefill[row, :length], whole[:length], rtol=0, atol=1e-10)
        torch.testing.assert_close(steps[row], whole[length:], rtol=0, atol=1e-10)


def test_forgetting_makes_room() -> None:
    cache = KVCache(ModelConfig(**SMALL), 2, 10)
    assert cache.extend(8).tolist() == [list(range(8))] * 2
    cache.truncate([3, 5])
    assert cache.extend(2).tolist() == [[3, 4], [5, 6]]
    assert cache.used == 7
    with pytest.raises(UserError, match=r"10 tokens a row: 7 and 4 more"):
        cache.extend(4)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[7, 7], [7, 3]], ids=["even", "uneven"])
@pytest.mark.parametrize("variant", ["qwen3", "nanochat"])
def test_rows_can_be_copied_into_a_longer_cache(variant: str, lengths: list[int]) -> None:
    model = build(variant)
    prompts_BT, next_BT = torch.randint(23, (2, 7)), torch.randint(23, (4, 1))
    cache = KVCache(model.config, 2, 7, dtype=torch.float64)
    model(prompts_BT, cache=cache)
    cache.truncate(lengths)
    rows = torch.tensor([1, 0, 0, 1])
    longer = cache.resized(9, rows)
    found = model(next_BT, cache=longer)[:, 0]
    longer.keep(torch.tensor([3, 0]))
    again = model(next_BT[:2], cache=longer)[:, 0]
    kept = [torch.cat((prompts_BT[rows[i], : lengths[rows[i]]], next_BT[i])) for i in (3, 0)]
    for i, before in enumerate(kept):
        whole = model(torch.cat((before, next_BT[i]))[None])[0, -1]
        torch.testing.assert_close(again[i], whole, rtol=0, atol=1e-10)
    for i, row in enumerate(rows.tolist()):
        whole = model(torch.cat((prompts_BT[row, : lengths[row]], next_BT[i]))[None])[0, -1]
        torch.testing.assert_close(found[i], whole, rtol=0, atol=1e-10)


def test_a_cache_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(UserError, match=r"65 tokens.*max_seq_len=64"):
        KVCache(ModelConfig(**SMALL), 1, 65)


def test_its_size() -> None:
    for dtype in (torch.float32, torch.bfloat16):  # on a CPU both are kept in fp32
        assert (
            KVCache(ModelConfig(**SMALL), 2, 10, dtype=dtype).nbytes == 2 * 3 * 2 * 10 * 2 * 8 * 4
        )  # k+v L B S G K bytes
    assert (
        KVCache(ModelConfig(**SMALL), 2, 10, "meta", torch.bfloat16).nbytes
        == 2 * 3 * 2 * 10 * 2 * 8 * 2
    )


@torch.no_grad()
@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("lengths", [[9, 9], [9, 4]], ids=["even", "uneven"])
def test_half_precision_computes_in_it_and_attends_in_more(how: str, lengths: list[int]) -> None:
    model = build("llama").float()
    exact = model(tokens_BT := torch.randint(23, (2, 12)))
    model = model.bfloat16() if how == "weights" else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        cache = KVCache(model.config, 2, 16, dtype=model.compute_dtype())
        model(tokens_BT[:, :9], cache=cache)
        cache.truncate(lengths)
        rows = torch.arange(2)
        for step in range(3):
            found = model(
                torch.stack([tokens_BT[row, lengths[row] + step] for row in rows.tolist()])[
                    :, None
                ],
                cache=cache,
            )[:, 0]
            expected = exact[rows, torch.tensor(lengths) + step]
            assert (found.float() - expected).norm() < 0.05 * expected.norm()  # bf16 has 8 bits
