"""Freezing and matching by regular expression: what is meant is found, and what means nothing
is answered with near names.
"""

import pytest
import torch

from lit_pretrain.adapter import freeze_
from lit_pretrain.adapter.freeze import matching
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

NAMES = [
    f"blocks.{layer}.{kind}"
    for layer in range(12)
    for kind in ("attention.q_proj", "attention.out_proj", "feed_forward.up_proj")
]


def network() -> Transformer:
    return Transformer(ModelConfig(vocab_size=64, n_layer=3, width=16, n_head=2, max_seq_len=16))


def test_patterns_are_searched_for_anywhere_and_names_keep_their_order() -> None:
    found = matching([r"up_proj$", r"blocks\.1\.attention\.q"], NAMES, setting="x", what="matrix")
    assert found == [
        name for name in NAMES if name.endswith("up_proj") or name == "blocks.1.attention.q_proj"
    ]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("q_porj", "blocks.*.attention.q_proj"),
        (r"feedforward\.up_proj", "blocks.*.feed_forward.up_proj"),
        ("o_proj", "blocks.*.attention.out_proj"),
    ],
)
def test_a_pattern_that_means_nothing_is_answered_with_near_names(pattern: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        matching([r"up_proj$", pattern], NAMES, setting="model.freeze", what="parameter")
    assert repr(pattern) in str(error.value)
    assert near in str(error.value)


def test_what_is_far_from_all_names_gets_the_kinds_there_are() -> None:
    with pytest.raises(
        UserError, match=r"blocks\.\*\.attention\.q_proj, blocks\.\*\.attention\.out_proj, blocks"
    ):
        matching(["xyzzy"], NAMES, setting="x", what="matrix")


def test_frozen_parameters_get_no_gradient_and_the_others_do() -> None:
    net = network()
    frozen = freeze_(net, [r"^token_embedding", r"blocks\.[01]\."])
    net.logits(net(torch.arange(8)[None])).square().mean().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set(frozen)
    assert "token_embedding.weight" in frozen
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        name
        for name, _ in net.named_parameters()
        if name.startswith(("blocks.2.", "final_norm", "head"))
    }


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        freeze_(network(), ["."])
