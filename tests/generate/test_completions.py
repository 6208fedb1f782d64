"""Completions: the tokens that the engine draws, and their log-probabilities as the network
itself gives them to the whole sequence.
"""

from typing import Any

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import (
    Completions,
    CompletionSampling,
    generate,
    sample_completions,
)
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

PROMPTS = [[1, 2, 3], [5, 6], [7] * 9, [1, 2, 3], [60]]
SEEDS = [21, 22, 23, 24, 25]
STOPS = frozenset(range(20, 40))


@pytest.fixture(scope="module")
def net() -> Transformer:
    """With large weights, a soft cap and dropout, in training mode."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=64,
        n_layer=2,
        width=32,
        n_head=4,
        ffn_width=64,
        max_seq_len=64,
        logit_softcap=5.0,
        dropout=0.3,
    )
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model.train()


def rows(found: Completions) -> list[list[int]]:
    return [
        tokens[mask].tolist() for tokens, mask in zip(found.tokens_BN, found.mask_BN, strict=True)
    ]


@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}, {"temperature": 0.0}],
    ids=str,
)
def test_they_are_the_engines_and_their_log_probabilities_are_the_networks(
    net: Transformer, how: dict[str, Any]
) -> None:
    found = sample_completions(
        net, PROMPTS, sampling=CompletionSampling(12, STOPS, **how), seeds=SEEDS
    )
    streamed: list[list[int]] = [[] for _ in PROMPTS]
    for token in generate(net, PROMPTS, max_new_tokens=12, seed=SEEDS, stop_ids=STOPS, **how):
        streamed[token.row].append(token.id)
    assert rows(found) == streamed
    assert len({len(row) for row in streamed}) > 2  # rows are dropped on the way
    assert net.training
    assert not found.tokens_BN.is_inference()
    net.eval()
    for prompt, row, logp, mask in zip(
        PROMPTS, streamed, found.logp_BN, found.mask_BN, strict=True
    ):
        logits = net.logits(net(torch.tensor([prompt + row])))[0].double() / (
            how.get("temperature", 1.0) or 1.0
        )
        expected = (
            logits.log_softmax(-1)[len(prompt) - 1 :]
            .gather(1, torch.tensor(row)[:, None])
            .squeeze(1)
        )
        torch.testing.assert_close(logp[mask].double(), expected, atol=2e-5, rtol=0)
        assert (logp[~mask] == 0).all()
    net.train()


def test_a_row_says_the_same_alone_and_in_company(net: Transformer) -> None:
    sampling = CompletionSampling(12, STOPS)
    together = rows(sample_completions(net, PROMPTS, sampling=sampling, seeds=SEEDS))
    alone = [
        rows(sample_completions(net, [p], sampling=sampling, seeds=[s]))[0]
        for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert together == alone
    assert together != rows(
        sample_completions(net, PROMPTS, sampling=sampling, seeds=[s + 100 for s in SEEDS])
    )


@pytest.mark.parametrize("cached", [True, False])
def test_a_rollout_within_autocast_hides_no_weight_from_the_backward_pass(
    net: Transformer, cached: bool
) -> None:
    """Autocast keeps casts of weights; those made without a gradient must be gone when the loss
    is computed in the same context.
    """

    def gradients(*, rollout: bool) -> list[torch.Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            if rollout:
                sample_completions(net, PROMPTS, sampling=CompletionSampling(4, STOPS), seeds=SEEDS)
            torch.manual_seed(0)
            net.logits(net(torch.tensor([[1, 2, 3, 4]]))).float().square().mean().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    plain, after = gradients(rollout=False), gradients(rollout=True)
    assert len(plain) == len(after) == len(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))


def test_a_prompt_without_room_is_refused(net: Transformer) -> None:
    with pytest.raises(
        UserError,
        match=(
            "prompt 1 has 60 tokens; it must have at least one, and with 12 new ones no more than"
        ),
    ):
        sample_completions(
            net, [[1], [1] * 60], sampling=CompletionSampling(12, STOPS), seeds=[0, 1]
        )


def test_a_prompt_is_read_once_however_often_it_is_answered(net: Transformer) -> None:
    seen: list[tuple[int, ...]] = []
    hook = net.token_embedding.register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape))
    )
    prompts, seeds = [[1, 2, 3]] * 4 + [[5, 6]] * 4, list(range(8))
    together = rows(
        sample_completions(net, prompts, sampling=CompletionSampling(3, ()), seeds=seeds)
    )
    hook.remove()
    assert seen == [(2, 3), (8, 1), (8, 1)]
    alone = [
        rows(sample_completions(net, [p], sampling=CompletionSampling(3, ()), seeds=[s]))[0]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    assert together == alone
