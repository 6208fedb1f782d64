"""Text: what is streamed, where stop strings end it, and what is said before anything is
printed.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError
from lit_pretrain.generate import conversation
from lit_pretrain.generate.conversation import (
    Piece,
    Reply,
    complete,
    encode_prompt,
    split_at_stop,
    stream,
)
from lit_pretrain.generate.engine import Token
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(dataset: Path) -> Tokenizer:
    return Tokenizer.load(dataset)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """Llama 2's kind: words marked by ▁, of which a text loses the first."""
    words = ["▁the", "▁king", "▁is", "▁dead"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *words])}
    hf = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    hf.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    hf.decoder = tokenizers.decoders.Metaspace()
    hf.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(hf.to_str())


@pytest.fixture(scope="module")
def net() -> Transformer:
    net = Transformer(ModelConfig(vocab_size=512, n_layer=1, width=32, n_head=2, max_seq_len=64))
    net.reset_parameters(torch.Generator().manual_seed(0))
    return net


def spoken(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, rows: Sequence[list[int]]
) -> list[int]:
    """Put an engine in place that says these tokens, the rows in turn; the list grows by each
    token that is asked for.
    """
    asked: list[int] = []

    def generate(net: object, prompts: object, **settings: Any) -> Iterator[Token]:
        for place in range(max(map(len, rows))):
            for row, tokens in enumerate(rows):
                if place < len(tokens):
                    asked.append(tokens[place])
                    yield Token(row, tokens[place], place + 1 == len(tokens))

    monkeypatch.setattr(conversation, "generate", generate)
    return asked


def pieces(tokenizer: Tokenizer, rows: int = 1, stop: Sequence[str] = ()) -> list[Piece]:
    return list(stream(None, tokenizer, [""] * rows, max_new_tokens=9, stop=stop))


def test_a_prompt_is_the_beginning_of_a_document(tokenizer: Tokenizer) -> None:
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_id]
    assert encode_prompt(tokenizer, "The fox") == [tokenizer.bos_id, *tokenizer.encode("The fox")]


def test_a_stop_string_that_two_tokens_share_is_found_and_not_shown(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [n for word in ("The fox", "#", "#", " and more") for n in tokenizer.encode(word)]
    asked = spoken(monkeypatch, tokenizer, [ids])
    got = pieces(tokenizer, stop=["##"])
    assert "".join(piece.text for piece in got) == "The fox"
    assert len(got) > 1  # streamed, and not at the end
    assert len(asked) == len(ids) - len(
        tokenizer.encode(" and more")
    )  # nothing is computed that nobody will see


def test_what_only_began_like_a_stop_string_is_given_out(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken(
        monkeypatch,
        tokenizer,
        [[n for word in ("a", "#", "b", "#") for n in tokenizer.encode(word)]],
    )
    assert [piece.text for piece in pieces(tokenizer, stop=["##"])] == ["a", "#b", "#"]


def test_text_follows_its_prompt(sentencepiece: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that leaves out the first blank of a text leaves it out there alone."""
    whole = sentencepiece.encode("the king is dead")
    begun = sentencepiece.encode("the king")
    assert whole[: len(begun)] == begun
    spoken(monkeypatch, sentencepiece, [whole[len(begun) :]])
    told = stream(None, sentencepiece, ["the king"], max_new_tokens=9)
    assert "".join(piece.text for piece in told) == " is dead"
    tokens = (Token(0, index, False) for index in whole[len(begun) :])
    answer = Reply(tokens, sentencepiece, begun, stop_ids=(), stop=())
    assert "".join(answer) == " is dead"


def test_tokens_are_counted_as_they_are_drawn(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as their text would be encoded: letters by themselves are one token as a word."""
    letters = [tokenizer.encode(letter)[0] for letter in "return"]
    assert len(tokenizer.encode("return")) < len(letters)
    spoken(monkeypatch, tokenizer, [[*letters, tokenizer.eos_id]])
    told = stream(None, tokenizer, [""], max_new_tokens=9)
    assert "".join(piece.text for piece in told) == "return"
    assert told.tokens == len(letters) + 1


def test_a_character_of_several_tokens_appears_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("é→")
    assert len(ids) > 2  # bytes: the tokenizer has seen neither
    spoken(monkeypatch, tokenizer, [ids])
    assert [piece.text for piece in pieces(tokenizer)] == ["é", "→"]


def test_rows_stop_by_themselves(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [tokenizer.encode("a#b"), tokenizer.encode("abcdef")]
    spoken(monkeypatch, tokenizer, rows)
    got = pieces(tokenizer, rows=2, stop=["#"])
    assert ["".join(piece.text for piece in got if piece.row == row) for row in (0, 1)] == [
        "a",
        "abcdef",
    ]


def test_the_document_separator_ends_a_row_and_is_not_shown(
    net: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken(monkeypatch, tokenizer, [[*tokenizer.encode("ab"), tokenizer.eos_id]])
    assert "".join(piece.text for piece in pieces(tokenizer)) == "ab"


@given(
    st.text("ab#", max_size=30),
    st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3),
    st.integers(1, 4),
)
def test_streamed_equals_cut_at_once(whole: str, stop: list[str], step: int) -> None:
    """However the text arrives: what is given out is the text before the first stop string."""
    held = given_out = ""
    found = False
    parts = [whole[i : i + step] for i in range(0, len(whole), step)] or [""]
    for i, part in enumerate(parts):
        held += part
        ready, found = split_at_stop(held, stop, last=i + 1 == len(parts))
        given_out += ready
        held = held[len(ready) :]
        if found:
            break
    places = [whole.find(s) for s in stop if s in whole]
    assert found == bool(places)
    assert whole.startswith(given_out)
    if not places:
        assert given_out == whole
    else:
        # Of two stop strings the first to be whole wins, so a longer one may begin before it.
        assert any(len(given_out) == place for place in places)
        assert all(s not in given_out for s in stop)


def test_completions_are_what_was_streamed(net: Transformer, tokenizer: Tokenizer) -> None:
    prompts = ["The fox", "def ", ""]
    texts = complete(net, tokenizer, prompts, max_new_tokens=12, seed=3)
    streamed = ["", "", ""]
    for piece in stream(net, tokenizer, prompts, max_new_tokens=12, seed=3):
        streamed[piece.row] += piece.text
    assert texts == streamed
    assert all(texts)


def test_what_cannot_be_is_said_before_the_first_piece(
    net: Transformer, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match="max_new_tokens=64"):
        stream(net, tokenizer, ["The fox"], max_new_tokens=64)  # not even asked for a piece


# ---------------------------------------------------------------------- through the command line


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.net.max_seq_len=64", "--model.compile=off",
        "--data.seq_len=32", "--data.micro_batch_size=8", "--data.global_batch_tokens=256",
        "--data.val_tokens=256", "--max_steps=1",
        "--sample_prompts=[]", "--trainer.accelerator=cpu", f"--data.path={dataset}",
        f"--runs={runs}", "--name=run",
    ])  # fmt: skip
    assert code == 0
    return runs / "run"


def test_prompts_and_stop_strings_of_the_command_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    ask = [
        "generate",
        f"--run={run}",
        "--temperature=1",
        "--top_p=null",
        "--seed=1",
        "--max_new_tokens=40",
    ]
    assert main([*ask, "--prompt=The fox"]) == 0
    (whole, told), prompt = capsys.readouterr(), "The fox"
    assert whole.startswith(prompt)
    assert "(40 tokens in" in told
    new = whole[len(prompt) :].rstrip("\n")
    stop = new[len(new) // 2 :][:3]
    assert main([*ask, "--prompt=The fox", f"--stop={[stop]!r}"]) == 0
    assert capsys.readouterr().out == prompt + new[: new.index(stop)] + "\n"
    assert main([*ask, "--prompts=['The fox', 'def ']"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"=== 'The fox'\nThe fox{new}\n=== 'def '\ndef ")


def test_too_long_a_completion_prints_no_prompt(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["generate", f"--run={run}", "--prompt=The fox", "--max_new_tokens=64"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "with max_new_tokens=64 that is more than model.max_seq_len=64" in shown.err


def test_as_long_as_the_model_has_room_for_unless_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert (
        main(["generate", f"--run={run}", "--prompt=The fox", "--temperature=1", "--top_p=null"])
        == 0
    )
    left_out = capsys.readouterr().out
    room = 64 - len(encode_prompt(Tokenizer.load(run), "The fox"))
    assert (
        main(
            [
                "generate",
                f"--run={run}",
                "--prompt=The fox",
                "--temperature=1",
                "--top_p=null",
                f"--max_new_tokens={room}",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == left_out


def test_the_count_begins_a_line_where_both_streams_go_into_one_pipe(run: Path) -> None:
    said = subprocess.run(
        [
            sys.executable, "-m", "lit_pretrain", "generate", "--run", str(run), "--prompt", "fox",
            "--max_new_tokens", "4", "--device", "cpu",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.startswith("fox")
    assert re.search(r"\n\(4 tokens in [\d.]+ s\)\n\Z", said), said


def test_an_interrupted_completion_ends_its_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[tuple[int, str]]:
        yield 0, " jumps"
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_pretrain.generate.conversation.stream", interrupted)
    capsys.readouterr()
    assert main(["generate", "--run", str(run), "--prompt=fox", "--device=cpu"]) == 130
    assert capsys.readouterr().out == "fox jumps\n"
