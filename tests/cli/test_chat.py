"""`lit_pretrain chat`: through a pipe, and in a terminal."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.chat.messages import Conversation
from lit_pretrain.chat.template import TEMPLATE_FILENAME
from lit_pretrain.data.chat.formats import find_format
from lit_pretrain.data.chat.row_reader import read_row


class Said(NamedTuple):
    code: int
    out: str
    err: str


Talk = Callable[..., Said]


@pytest.fixture
def talk(
    chat_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Talk:
    """`chat` with some input; `typed` are lines of a terminal, of which None is Ctrl-C."""

    def run(
        *lines: str | None, options: tuple[str, ...] = (), run: Path = chat_run, typed: bool = False
    ) -> Said:
        stdin = io.StringIO("".join(f"{line}\n" for line in lines))
        if typed:
            waiting = iter(lines)

            def ask(prompt: str = "") -> str:
                try:
                    line = next(waiting)
                except StopIteration:
                    raise EOFError from None
                if line is None:
                    raise KeyboardInterrupt
                return line

            monkeypatch.setattr("builtins.input", ask)
            monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", stdin)
        code = main(["chat", f"--run={run}", "--device=cpu", "--max_new_tokens=8", *options])
        return Said(code, *capsys.readouterr())

    return run


def test_a_pipe_gets_answers_and_nothing_else(talk: Talk) -> None:
    once = talk("The fox", "")
    assert once.code == 0
    assert once.out.endswith("\n")
    twice = talk("The fox", "And the owl?", "/quit", "never said")
    assert twice.out.startswith(once.out)  # the seed decides
    assert twice.err.count("written") == 2
    assert "0 of them remembered" in twice.err.splitlines()[0]
    assert "0 of them remembered" not in twice.err.splitlines()[1]
    assert talk("The fox", options=("--seed=1",)).out != once.out
    assert talk("The fox", options=("--system=Be brief.",)).out != once.out


def test_what_is_saved_is_what_was_said_and_can_be_learned(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "new" / "talk.jsonl"
    said = talk(
        "One\\",
        "two",
        "//three",
        f"/save {file}",
        "/reset",
        "Four",
        f"/save {file}",
        options=("--system=S",),
    )
    assert said.code == 0
    saved = json.loads(file.read_text())
    assert [(m["role"], m["content"]) for m in saved["messages"][:2]] == [
        ("system", "S"),
        ("user", "Four"),
    ]
    assert saved["messages"][2]["content"] in said.out
    row = read_row(
        saved,
        find_format("messages", kind="conversation", fields=None, roles=None, setting="here"),
        kind="conversation",
    )
    assert isinstance(row, Conversation)
    first = talk("One\\", "two", "//three", f"/save {tmp_path / 'other'}")
    assert [
        m["content"] for m in json.loads((tmp_path / "other").read_text())["messages"][::2]
    ] == ["One\ntwo", "/three"]
    refused = talk("Hello", f"/save {file}")
    assert (first.code, refused.code) == (0, 2)
    assert "exists already" in refused.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sav x", "no command /sav"),
        ("/save", "needs the name of a file"),
        ("/save x", "nothing has been said"),
        ("fox " * 300, r"the message takes"),
    ],
)
def test_a_mistake_ends_a_pipe_and_not_a_terminal(talk: Talk, line: str, message: str) -> None:
    piped, typed = talk(line, "Hello"), talk(line, "Hello", typed=True)
    assert (piped.code, piped.out) == (2, "")
    assert (typed.code, typed.out.count("\n") >= 1) == (0, True)
    assert message in piped.err
    assert message in typed.err


def test_a_terminal(talk: Talk) -> None:
    said = talk(
        "/help", None, "Hello", "/system Be brief.", "Hello", "/system", "Hello", typed=True
    )
    assert said.code == 0
    assert "/save FILE" in said.err
    assert said.err.count("begun anew") == 2
    read = [
        int(line.partition(" tokens read")[0].rpartition("(")[2])
        for line in said.err.splitlines()
        if "tokens read" in line
    ]
    assert read[0] == read[2] < read[1]  # with a system message there is more to read


def test_the_limit_is_said(talk: Talk) -> None:
    said = talk(*(["Hello again and again and again"] * 12))
    assert said.code == 0
    assert "the context is full: the first" in said.err
    assert "cut off: the limit was reached" in said.err


def test_what_cannot_be(talk: Talk, chat_run: Path, tmp_path: Path) -> None:
    for option, message in (
        ("--temperature=-1", "temperature=-1"),
        ("--max_new_tokens=0", "max_new_tokens=0"),
        ("--template=nope", "data.template='nope'"),
        ("--run=nowhere", "nowhere does not exist"),
    ):
        said = talk("Hello", options=(option,))
        assert said.code == 2, option
        assert message in said.err
        assert said.out == ""
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in chat_run.iterdir():
        if path.name != TEMPLATE_FILENAME:
            (bare / path.name).symlink_to(path)
    said = talk("Hello", run=bare)
    assert said.code == 2  # its record says what template it was trained with
    assert "--accept '[template, stop_ids]'" in said.err
    said = talk("Hello", run=bare, options=("--accept=[template, stop_ids]",))
    assert said.code == 0
    assert "has no chat template" in said.err
