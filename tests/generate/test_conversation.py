"""Conversation: what the network reads at each turn, what it forgets, and how a reply ends."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.chat.render import Renderer
from lit_pretrain.chat.template import ChatTemplate, find_template
from lit_pretrain.errors import UserError
from lit_pretrain.generate import conversation as reply_module
from lit_pretrain.generate.conversation import Reply, ReplySampling, Talk, reply
from lit_pretrain.generate.engine import Token, generate
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer

LIMIT = 96


@pytest.fixture(scope="module")
def renderer(dataset: Path) -> Renderer:
    return Renderer(Tokenizer.load(dataset), find_template("chatml", dataset))


@pytest.fixture(scope="module")
def net() -> Transformer:
    net = Transformer(ModelConfig(vocab_size=512, n_layer=1, width=32, n_head=2, max_seq_len=LIMIT))
    net.reset_parameters(torch.Generator().manual_seed(0))
    return net


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Grows by every prompt that the engine gets."""
    prompts: list[list[int]] = []

    def watched(model: Transformer, asked: Sequence[list[int]], **settings: Any) -> Iterator[Token]:
        prompts.extend(asked)
        return generate(model, asked, **settings)

    monkeypatch.setattr(reply_module, "generate", watched)
    return prompts


def turn(talk: Talk, text: str) -> str:
    answer = talk.say(text)
    said = "".join(answer)
    assert said == answer.text
    talk.heard(said)
    return said


def test_the_network_reads_the_rendered_conversation(
    net: Transformer, renderer: Renderer, read: list[list[int]]
) -> None:
    talk = Talk(net, renderer, ReplySampling(max_new_tokens=8), system="Be brief.")
    first = turn(talk, "The fox?")
    turn(talk, "And the owl?")
    whole = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The fox?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And the owl?"},
    ]
    assert read == [renderer.prompt(whole[:2]).tolist(), renderer.prompt(whole).tolist()]
    assert talk.prompt_tokens == len(read[1])
    assert talk.kept.reused >= len(read[0])
    assert talk.whole[:4] == whole
    talk.reset(system=None)
    assert talk.whole == []


def test_a_seed_decides_and_turns_differ(net: Transformer, renderer: Renderer) -> None:
    talks = [Talk(net, renderer, ReplySampling(max_new_tokens=12, seed=seed)) for seed in (0, 0, 1)]
    said = [[turn(talk, "a"), turn(talk, "b")] for talk in talks]
    assert said[0] == said[1] != said[2]


def test_a_full_context_forgets_the_oldest_questions_and_keeps_the_system(
    net: Transformer, renderer: Renderer, read: list[list[int]]
) -> None:
    talk = Talk(net, renderer, ReplySampling(max_new_tokens=16), system="Be brief.")
    turns = 0
    while not talk.forgotten:
        turn(talk, f"Question {turns}")
        turns += 1
        assert turns < 20
    system = renderer.prompt(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    ).tolist()
    assert all(prompt[:8] == system[:8] and len(prompt) + 16 <= LIMIT for prompt in read)
    assert talk.forgotten % 2 == 0  # a question goes with its answer
    assert (
        read[-1] == renderer.prompt([talk.whole[0], *talk.messages[talk.forgotten : -1]]).tolist()
    )
    assert len(talk.messages) == 2 * turns  # what is saved is whole
    # one exchange fewer would not have fitted
    assert (
        len(renderer.prompt([talk.whole[0], *talk.messages[talk.forgotten - 2 : -1]])) + 16 > LIMIT
    )


def test_a_long_message_leaves_less_room_and_a_longer_one_is_refused(
    net: Transformer, renderer: Renderer
) -> None:
    talk = Talk(net, renderer, ReplySampling(max_new_tokens=500, temperature=0))
    turn(talk, "Hello")
    long = "fox " * 200
    with pytest.raises(UserError, match=rf"the message takes \d+ tokens .* reads {LIMIT}"):
        talk.say(long)
    assert len(talk.messages) == 2
    while len(renderer.prompt([{"role": "user", "content": long}])) > LIMIT - 3:
        long = long[:-1]
    answer = talk.say(long)
    list(answer)
    assert answer.tokens <= LIMIT - talk.prompt_tokens
    assert talk.forgotten == 2


def test_what_the_template_refuses_is_said(net: Transformer, renderer: Renderer) -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + renderer.template.source
    )
    strict = Renderer(renderer.tokenizer, ChatTemplate(source, name="strict"))
    Talk(net, strict, ReplySampling()).check()
    with pytest.raises(UserError, match="no system"):
        Talk(net, strict, ReplySampling(), system="x").check()


# ---------------------------------------------------------------------- how a reply ends


def answered(tokenizer: Tokenizer, ids: list[int], stop: Sequence[str] = ()) -> Reply:
    tokens = (Token(0, token, place + 1 == len(ids)) for place, token in enumerate(ids))
    stop_ids = {tokenizer.special_tokens["<|im_end|>"]}
    return Reply(tokens, tokenizer, [], stop_ids=stop_ids, stop=stop)


def test_how_a_reply_ends(renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    fox, end = tokenizer.encode("The fox"), tokenizer.special_tokens["<|im_end|>"]
    for ids, stop, text, finish, count in (
        ([*fox, end], (), "The fox", "stop", len(fox) + 1),
        (fox, (), "The fox", "length", len(fox)),
        ([end], (), "", "stop", 1),
        (
            [*fox, *tokenizer.encode("##"), *fox],
            ("##",),
            "The fox",
            "stop",
            len(fox) + len(tokenizer.encode("##")),
        ),
    ):
        answer = answered(tokenizer, ids, stop)
        assert "".join(answer) == answer.text == text
        assert (answer.finish, answer.tokens) == (finish, count)


def test_a_reply_that_is_closed_is_not_finished(net: Transformer, renderer: Renderer) -> None:
    answer = reply(net, renderer.tokenizer, [1, 2], max_new_tokens=50, stop_ids=set(), seed=3)
    first = next(iter(answer))
    answer.close()
    assert list(answer) == []
    assert (answer.text, answer.finish) == (first, None)
    assert answer.tokens < 50
