"""The engine: a row depends on itself alone, and the model is left as it was."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import generate
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 29,
    "n_layer": 2,
    "width": 32,
    "n_head": 4,
    "n_kv_head": 2,
    "max_seq_len": 48,
    "init_std": 0.5,
}
PROMPTS = [[1, 2, 3], [5], [4, 3, 2, 1, 9, 8, 7, 6, 5, 4], [0, 0]]


def build(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SMALL, **changes})).double()


def rows(model: Transformer, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in prompts]
    for token in generate(model, prompts, **settings):
        out[token.row].append(token.id)
    return out


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=12), min_size=1, max_size=4),
    st.sampled_from(
        [{"temperature": 0.0}, {}, {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "min_p": 0.01}]
    ),
    st.integers(0, 10**9),
    st.sampled_from([{}, {"sliding_window": 4, "window_pattern": "SL"}, {"position": "learned"}]),
)
def test_a_batch_is_its_rows_one_by_one(
    prompts: list[list[int]], sampling: dict[str, Any], seed: int, changes: dict[str, Any]
) -> None:
    model = build(**changes)
    seeds = [seed + row for row in range(len(prompts))]
    batched = rows(model, prompts, max_new_tokens=9, seed=seeds, **sampling)
    for prompt, row, row_seed in zip(prompts, batched, seeds, strict=True):
        assert rows(model, [prompt], max_new_tokens=9, seed=row_seed, **sampling) == [row]


def test_greedy_is_the_argmax_of_the_whole_sequence_at_every_step() -> None:
    model = build()
    for prompt, new in zip(
        PROMPTS, rows(model, PROMPTS, max_new_tokens=12, temperature=0), strict=True
    ):
        sequence = [*prompt, *new]
        with torch.no_grad():
            likeliest = model.logits(model(torch.tensor([sequence])))[0].argmax(-1).tolist()
        assert new == likeliest[len(prompt) - 1 : -1]
        assert len(new) == 12


def test_a_seed_decides_and_rows_have_streams_of_their_own() -> None:
    model = build()
    same = [[1, 2, 3]] * 3
    first = rows(model, same, max_new_tokens=20, seed=4)
    assert first == rows(model, same, max_new_tokens=20, seed=4)
    assert first != rows(model, same, max_new_tokens=20, seed=5)
    assert first[0] != first[1] != first[2]
    assert (
        first[1:] != rows(model, same, max_new_tokens=20, seed=5)[:2]
    )  # neighbouring seeds share no stream


def test_tokens_are_as_frequent_as_their_probabilities() -> None:
    model = build(init_std=0.2)
    n = 3000
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([[1, 2, 3]])))[0, -1].softmax(-1) * n
    drawn = torch.tensor(rows(model, [[1, 2, 3]] * n, max_new_tokens=1)).flatten()
    counts = torch.bincount(drawn, minlength=29)
    assert (
        float(((counts - expected) ** 2 / expected).sum()) < 28 + 4 * (2 * 28) ** 0.5
    )  # chi-squared, 28 degrees of freedom


def test_a_row_ends_at_its_stop_id_and_the_others_go_on() -> None:
    model = build()
    free = rows(model, PROMPTS, max_new_tokens=15, seed=1)
    stop = free[2][4]
    tokens = list(generate(model, PROMPTS, max_new_tokens=15, seed=1, stop_ids=[stop]))
    for row, whole in enumerate(free):
        mine = [token for token in tokens if token.row == row]
        expected = whole[: whole.index(stop) + 1] if stop in whole else whole
        assert [token.id for token in mine] == expected
        assert [token.last for token in mine] == [False] * (len(mine) - 1) + [True]


def test_nothing_is_computed_after_the_last_row_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    everything = range(29)
    assert len(list(generate(model, PROMPTS, max_new_tokens=15, stop_ids=everything))) == 4
    assert len(calls) == 1
    calls.clear()
    assert len(rows(model, [[1]], max_new_tokens=5)[0]) == 5
    assert len(calls) == 5  # the prompt yields the first token


def test_tokens_stream_and_the_model_is_left_alone_between_them() -> None:
    model = build(dropout=0.5)
    model.blocks[0].eval()  # a mixed state, as of a partly frozen model
    modes = [module.training for module in model.modules()]
    stream = generate(model, [[1, 2]], max_new_tokens=8)
    for _ in range(3):
        next(stream)
        assert [module.training for module in model.modules()] == modes
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        model(torch.tensor([[1, 2]])).sum().backward()  # training may go on meanwhile
    stream.close()
    assert [module.training for module in model.modules()] == modes
    assert not torch.is_inference_mode_enabled()


def test_the_model_is_left_alone_when_a_step_fails() -> None:
    model = build()
    model.train()
    with torch.no_grad():
        model.head_weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        list(generate(model, [[1]], max_new_tokens=3))
    assert all(module.training for module in model.modules())
    assert not torch.is_inference_mode_enabled()


def test_dropout_is_off() -> None:
    assert rows(build(dropout=0.5), PROMPTS, max_new_tokens=9) == rows(
        build(), PROMPTS, max_new_tokens=9
    )


def test_a_compiled_model_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = build(), build()

    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("the compiler was asked")

    model.compile(backend=backend)
    model.compile_blocks(backend)
    assert rows(model, PROMPTS, max_new_tokens=5) == rows(plain, PROMPTS, max_new_tokens=5)


def test_autocast_of_the_caller_applies() -> None:
    model = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert [len(row) for row in rows(model, PROMPTS, max_new_tokens=5)] == [5] * 4
    half = rows(build().bfloat16(), PROMPTS, max_new_tokens=5)
    assert [len(row) for row in half] == [5] * 4


def test_no_prompts_no_tokens() -> None:
    assert list(generate(build(), [], max_new_tokens=5)) == []


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        (
            [[1], [1] * 40],
            {"max_new_tokens": 9},
            r"prompt 1 has 40 tokens.*max_new_tokens=9.*max_seq_len=48",
        ),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"top_p": 2.0}, "top_p=2.0"),
        ([[1], [2]], {"seed": [1]}, "1 seeds for 2 prompts"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_at_once(
    prompts: list[list[int]], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        generate(build(), prompts, **{"max_new_tokens": 4, **settings})


def test_an_unknown_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"token id 29 in row 1, column 2"):
        list(generate(build(), [[1], [2, 3, 29]], max_new_tokens=4))
