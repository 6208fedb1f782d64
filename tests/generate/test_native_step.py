"""The compiled step: it computes what the modules compute, and whatever it does not know runs in
the modules.
"""

import dataclasses
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_pretrain.adapter.lora import LoRA, plain_weights
from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.generate import engine, native_step
from lit_pretrain.generate.engine import CompletionSampling, sample_completions
from lit_pretrain.generate.native_step import NativeStep, load_library, why_not_native
from lit_pretrain.model.attention import KVCache
from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "n_layer": 3,
    "width": 36,
    "n_head": 6,
    "n_kv_head": 2,
    "max_seq_len": 48,
    "init_std": 0.3,
}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "vocab_size": [{"vocab_size": 130}],
    "n_layer": [{"n_layer": 1}],
    "width": [{"width": 48}],
    "n_head": [{"n_head": 2}],
    "n_kv_head": [{"n_kv_head": None}, {"n_kv_head": 1}, {"n_kv_head": 3}],
    "head_dim": [{"head_dim": 16}, {"head_dim": 10}],
    "ffn_width": [{"ffn_width": 29}],
    "max_seq_len": [{"max_seq_len": 40}],
    "norm": [{"norm": "layernorm"}],
    "norm_weight": [{"norm_weight": False}, {"norm_weight": False, "norm": "layernorm"}],
    "norm_bias": [{"norm_bias": True, "norm": "layernorm"}],
    "norm_eps": [{"norm_eps": 0.1}],
    "embed_norm": [{"embed_norm": True}],
    "position": [{"position": "learned"}, {"position": "none"}],
    "rope_theta": [{"rope_theta": 50.0}],
    "rope_scaling": [{"rope_scaling": RopeScaling(factor=4.0, original_max_seq_len=16)}],
    "qk_norm": [{"qk_norm": True}, {"qk_norm": True, "norm_weight": False}],
    "qk_scale": [
        {"qk_norm": True, "qk_scale": 1.7},
        {"qk_norm": True, "qk_scale": 1.7, "norm_weight": False},
    ],
    "qkv_bias": [{"qkv_bias": True}],
    "attn_out_bias": [{"attn_out_bias": True}],
    "sliding_window": [{"sliding_window": 4, "window_pattern": "S"}],
    "window_pattern": [{"sliding_window": 5, "window_pattern": "SSL"}],
    "attn_softcap": [{"attn_softcap": 1.5}],
    "logit_softcap": [{"logit_softcap": 2.0}],
    "logit_scale": [{"logit_scale": 0.4}, {"logit_scale": 0.4, "logit_softcap": 2.0}],
    "attention": [{"attention": "matmul"}],
    "activation": [
        {"activation": name, "ffn_width": 40}
        for name in ("swiglu", "geglu", "gelu", "gelu_tanh", "relu2")
    ],
    "ffn_bias": [{"ffn_bias": True}, {"ffn_bias": True, "activation": "gelu"}],
    "dropout": [{"dropout": 0.4}],
    "tie_embeddings": [{"tie_embeddings": True}],
    "value_embeddings": [{"value_embeddings": "alternate"}],
    "value_gate_channels": [{"value_embeddings": "alternate", "value_gate_channels": 12}],
    "value_gate_scale": [{"value_embeddings": "alternate", "value_gate_scale": 3.0}],
    "value_gate_init": [{"value_embeddings": "alternate", "value_gate_init": 0.5}],
    "residual_scalars": [{"residual_scalars": True}],
    "residual_scale_init": [{"residual_scalars": True, "residual_scale_init": (1.5, 0.5)}],
    "embedding_scale_init": [{"residual_scalars": True, "embedding_scale_init": (0.9, 0.2)}],
    "bigram_rows": [{"bigram_rows": 70}, {"bigram_rows": 7, "residual_scalars": True}],
    "smear": [{"smear": True}, {"smear": True, "embed_norm": True, "bigram_rows": 70}],
    "init": [{"init": "gpt2"}],
    "init_std": [{"init_std": 0.1}],
    "embedding_std": [{"embedding_std": 0.8}],
    "ffn_in_scale": [{"ffn_in_scale": 0.4}],
}
"""For every field of a network's shape, other values than those of SMALL."""
CASES = [{}, *(change for changes in CHANGES.values() for change in changes)]
PROMPTS = [[1, 2, 3], [5], [4, 3, 2, 1, 9, 8, 7, 6, 5, 4], [9, 9], [30], [7] * 6, [8, 1], [2], [3]]


def build(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gains and biases are 1 and 0 at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def native(model: Transformer) -> NativeStep:
    step = native_step.native_step(model)
    assert step is not None, why_not_native(model) or "this machine has no C compiler"
    return step


def read(model: Transformer, prompts: list[list[int]], room: int) -> KVCache:
    """Read prompts of different lengths, in fp32."""
    longest = max(map(len, prompts))
    cache = KVCache(model.config, len(prompts), longest + room)
    with torch.inference_mode():
        model(torch.tensor([p + [0] * (longest - len(p)) for p in prompts]), cache=cache)
    cache.truncate([len(prompt) for prompt in prompts])
    return cache


def test_every_field_of_a_shape_has_a_case() -> None:
    """A block of the user's own is no field of ours: the modules compute it."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(CHANGES) == fields - {"block"}


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_logits_are_those_of_the_modules(changes: dict[str, Any], dtype: torch.dtype) -> None:
    weights = build(**changes).to(dtype)
    step = native(weights)
    # Its sums are fp32 for bf16 weights, too, so the reference is the modules with these in fp32.
    reference = build(**changes)
    reference.load_state_dict(weights.state_dict())
    ours, theirs = read(reference, PROMPTS, 4), read(reference, PROMPTS, 4)
    for _ in range(4):
        ids_B = torch.randint(weights.config.vocab_size, (len(PROMPTS),))
        with torch.inference_mode():
            found_BV = step(ids_B, ours)
            expected_BV = reference.logits(reference(ids_B[:, None], cache=theirs)[:, -1])
        scale = float(expected_BV.abs().max())
        torch.testing.assert_close(found_BV, expected_BV, rtol=0, atol=2e-5 * scale)


def test_a_row_alone_has_the_bits_it_has_in_a_batch_with_any_number_of_threads() -> None:
    model = build(sliding_window=5, window_pattern="SL", qk_norm=True)
    step, threads = native(model), torch.get_num_threads()
    cache = read(model, PROMPTS, 3)
    ids_B = torch.randint(61, (len(PROMPTS),))
    alone = []
    for row, token in enumerate(ids_B):
        mine = cache.resized(cache.max_len, torch.tensor([row]))
        alone.append(step(token[None], mine))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            same = cache.resized(cache.max_len)
            assert torch.equal(step(ids_B, same), torch.cat(alone))
    finally:
        torch.set_num_threads(threads)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.2, "seed": 3},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 4},
]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=len)
def test_generate_writes_what_the_modules_write(
    how: dict[str, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, taken = build(n_kv_head=3), []
    call = NativeStep.__call__
    monkeypatch.setattr(NativeStep, "__call__", lambda *given: taken.append(1) or call(*given))
    fast = list(engine.generate(model, prompts, max_new_tokens=20, **how))
    assert len(taken) == 19  # the first token comes from the prompt
    monkeypatch.setattr(engine, "native_step", lambda _: None)
    assert list(engine.generate(model, prompts, max_new_tokens=20, **how)) == fast
    assert len(taken) == 19


def test_completions_are_drawn_by_it_and_rows_leave_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build()
    sampling = CompletionSampling(24, stop_ids=range(20))
    arguments: dict[str, Any] = {"sampling": sampling, "seeds": range(len(PROMPTS))}
    fast = sample_completions(model, PROMPTS, **arguments)
    monkeypatch.setattr(engine, "native_step", lambda _: None)
    plain = sample_completions(model, PROMPTS, **arguments)
    assert torch.equal(fast.tokens_BN, plain.tokens_BN)
    torch.testing.assert_close(fast.logp_BN, plain.logp_BN, rtol=0, atol=1e-4)


def test_it_reads_weights_in_place() -> None:
    model = build()
    tokens = engine.generate(model, [[1, 2]], max_new_tokens=8, temperature=0)
    next(tokens), next(tokens)
    with torch.no_grad():
        assert model.head is not None
        model.head.weight.zero_()
        model.head.weight[17] = 0.0
        model.final_norm.weight.zero_()
    assert [token.id for token in tokens][1:] == [0] * 5  # all logits are 0: the first id


def test_large_pages_are_asked_for_all_weights_and_change_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Transformer(ModelConfig(**SMALL | {"vocab_size": 40_000}))  # 5.8 MB, so some are made
    before = [weight.detach().clone() for weight in net.parameters()]
    asked: list[tuple[int, int]] = []
    library = load_library()
    assert library is not None
    make = library.prefer_large_pages

    def prefer(begin: Any, end: Any) -> None:
        asked.append((begin.value, end.value))
        make(begin, end)

    monkeypatch.setattr(library, "prefer_large_pages", prefer)
    NativeStep(net, library)
    assert asked == sorted(asked)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(asked))
    for weight, same in zip(net.parameters(), before, strict=True):
        begin, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
        assert any(first <= begin and end <= last for first, last in asked)
        assert torch.equal(weight, same)


def test_an_adapter_runs_in_the_modules_and_natively_once_it_is_merged() -> None:
    model = build()
    LoRA(rank=2, alpha=4.0).apply(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert "AdaptedLinear" in str(why_not_native(model))
    merged = build()
    merged.load_state_dict(plain_weights(model))
    native(merged)
    for one, other in zip(
        engine.generate(model, PROMPTS, max_new_tokens=12, temperature=0),
        engine.generate(merged, PROMPTS, max_new_tokens=12, temperature=0),
        strict=True,
    ):
        assert one == other


class Own(nn.Linear):
    pass


def _swap(model: Transformer) -> None:
    model.blocks[1].feed_forward.up_proj = Own(36, 128, bias=False)


def _hook(model: Transformer) -> None:
    model.blocks[0].register_forward_hook(lambda *_: None)


def _transpose(model: Transformer) -> None:
    weight = model.blocks[0].attention.out_proj.weight
    weight.data = weight.data.T.contiguous().T


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.double(), "not all in fp32"),
        (lambda model: model.half(), "not all in fp32"),
        (lambda model: model.head.bfloat16(), "not all in fp32"),
        (lambda model: model.to("meta"), "not on a CPU"),
        (_swap, "blocks.1.feed_forward.up_proj is a Own"),
        (_hook, "blocks.0 has hooks"),
        (_transpose, "not plain contiguous tensors"),
    ],
)
def test_what_it_does_not_know_is_named(change: Any, reason: str) -> None:
    model = build()
    assert why_not_native(model) is None
    change(model)
    assert reason in str(why_not_native(model))
    assert native_step.native_step(model) is None


def test_many_rows_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build(), []
    monkeypatch.setattr(native_step, "MOST_ROWS", 4)
    call = NativeStep.__call__
    monkeypatch.setattr(
        NativeStep, "__call__", lambda *given: rows.append(len(given[1])) or call(*given)
    )
    assert len(list(engine.generate(model, PROMPTS, max_new_tokens=3))) == 3 * len(PROMPTS)
    assert not rows
    sampling = CompletionSampling(30, stop_ids=range(12))
    sample_completions(model, PROMPTS, sampling=sampling, seeds=range(len(PROMPTS)))
    assert rows
    assert max(rows) <= 4


def test_under_autocast_the_modules_decode() -> None:
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not_native(model) == "autocast is on"


def test_a_token_outside_the_vocabulary_and_a_full_cache_are_refused() -> None:
    model = build()
    step, cache = native(model), read(model, [[1, 2]], 2)
    with pytest.raises(UserError, match="token id 61 in row 0"):
        step(torch.tensor([61]), cache)
    step(torch.tensor([3]), cache)
    with pytest.raises(UserError, match="the cache holds 4 tokens"):
        step(torch.tensor([3]), cache)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, in which nothing has been built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_library.cache_clear()
    yield tmp_path
    load_library.cache_clear()


def test_it_is_built_once_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library() is not None
    load_library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # nothing is compiled any more
    assert load_library() is not None
    assert len(list(fresh.rglob("*.so"))) == 1


def _no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")


def _failing_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")


def _file_for_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lit_pretrain").write_text("")


@pytest.mark.parametrize("lack", [_no_compiler, _failing_compiler, _file_for_folder])
def test_where_it_cannot_be_built_or_kept_the_modules_decode(
    lack: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack(fresh, monkeypatch)
    model = build()
    assert native_step.native_step(model) is None
    assert len(list(engine.generate(model, PROMPTS, max_new_tokens=3))) == 3 * len(PROMPTS)


def test_a_library_that_does_not_load_is_not_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        native_step, "_build", lambda _, path: write_file(path, b"of another machine") or True
    )
    assert load_library() is None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_it_compiles_without_warnings(tmp_path: Path) -> None:
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Werror",
        "-fopenmp",
        "-c",
        "-o",
        "step.o",
    ]
    subprocess.run([*command, str(native_step.SOURCE)], cwd=tmp_path, check=True)
