"""Kept: replies with a memory are the replies without one, for fewer tokens of work."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import KeptCache, generate
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 7,
    "n_layer": 2,
    "width": 32,
    "n_head": 4,
    "n_kv_head": 2,
    "max_seq_len": 48,
    "init_std": 0.5,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"sliding_window": 4, "window_pattern": "SL"},
    {"position": "learned"},
]


def build(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SMALL, **changes})).double()


def fed(model: Transformer) -> list[int]:
    """Grows by the number of tokens of every forward pass."""
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    return lengths


@settings(max_examples=30)
@given(
    st.sampled_from(VARIANTS),
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=24),
            st.integers(1, 9),
            st.integers(0, 30),
        ),
        max_size=5,
    ),
)
def test_the_same_replies(changes: dict[str, Any], turns: list[tuple[list[int], int, int]]) -> None:
    """Prompts of three different tokens begin alike often enough; some replies are left
    half-read.
    """
    model, kept = build(**changes), KeptCache()
    for prompt, room, read in turns:
        wanted = [token.id for token in generate(model, [prompt], max_new_tokens=room, seed=read)]
        tokens = generate(model, [prompt], max_new_tokens=room, seed=read, kept=kept)
        got = [token.id for token, _ in zip(tokens, range(read), strict=False)]
        tokens.close()
        assert got == wanted[:read]


def test_only_what_is_new_is_computed() -> None:
    model, kept = build(), KeptCache()
    said = [token.id for token in generate(model, [[1, 2, 3]], max_new_tokens=5, kept=kept)]
    lengths = fed(model)
    list(generate(model, [[1, 2, 3, *said, 4, 4]], max_new_tokens=2, kept=kept))
    assert kept.reused == 3 + 4  # the last token of a reply was drawn and never read
    assert lengths == [3, 1]
    list(generate(model, [[1, 2, 6]], max_new_tokens=1, kept=kept))
    assert (kept.reused, lengths[2:]) == (2, [1])
    list(generate(model, [[1, 2, 6]], max_new_tokens=1, kept=kept))
    assert (kept.reused, lengths[3:]) == (
        2,
        [1],
    )  # of the same prompt again the last token is read again: what follows is drawn from it
    list(generate(model, [[5]], max_new_tokens=1, kept=kept))
    assert (kept.reused, lengths[4:]) == (0, [1])


def test_it_grows_and_no_further_than_the_model_reads() -> None:
    model, kept = build(), KeptCache()
    prompt = [1]
    while len(prompt) < 47:
        prompt += [token.id for token in generate(model, [prompt], max_new_tokens=1, kept=kept)]
    assert kept._cache is not None
    assert kept._cache.max_len == 48
    with pytest.raises(UserError, match="max_seq_len=48"):
        generate(model, [prompt], max_new_tokens=2, kept=kept)


def test_another_dtype_begins_anew() -> None:
    model, kept = build(), KeptCache()
    list(generate(model, [[1, 2, 3]], max_new_tokens=2, kept=kept))
    list(generate(model.float(), [[1, 2, 3]], max_new_tokens=2, kept=kept))
    assert kept.reused == 0
