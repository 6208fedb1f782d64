"""What a user gives is what is done, whichever verb it is given to."""

import contextlib
import importlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lit_pretrain.__main__
from lit_pretrain.__main__ import NEED_POSIX, main, verbs
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import read_config
from lit_pretrain.report.run_folder import check_run_name

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


def commands() -> Iterator[str]:
    """All verbs, and the parts of groups."""
    for name in verbs():
        verb = importlib.import_module(f"lit_pretrain.cli.{name}").VERB
        parts = [""] if isinstance(verb, Verb) else [f" {part}" for part in verb.parts]
        yield from (f"{name}{part}" for part in parts)


def call(*args: object) -> int:
    """Run the command line within this process; anything but an exit code is a traceback."""
    try:
        return main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.parametrize("command", [name for name in commands() if name != "doctor"])
def test_every_verb_refuses_a_config_that_is_not_strict(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    for content, said in (
        (b"seed: 1\nrun: x\nseed: 2\n", "given twice, in line 1 and in line 3"),
        (b"run: caf\xe9\n", "is not UTF-8: line 1 holds the byte 0xe9"),
        (b"a: &a [*a]\n", "an anchor contains itself"),
        (LAUGHS.encode(), "stand for more than"),
        (b"no: 1\n", "put the word in quotes"),
        (b"- 1\n", "holds list"),
        (b"x: [\n", "line 2"),
    ):
        bad.write_bytes(content)
        assert call(*command.split(), "--config", bad) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {bad}"), error
        assert said in error
        assert len(error.splitlines()) <= 4


REFERRING = {
    "fit": "name", "prepare": "out", "join": "out", "import": "out", "adapter import": "out",
    "inspect data": "path", "inspect batch": "name", "plan": "device", "scaling sweep": "out",
    "scaling plot": "out", "tokenizer report": "data",
}  # fmt: skip
"""A text option of the verbs that take no run."""
NEED_A_PARENT = {"posttrain", "finetune"}
NO_FILE_OF_TEXT = {"doctor", "scaling fit", "scaling isoflop", "scaling forecast"}


@pytest.mark.parametrize("command", sorted({*commands()} - NEED_A_PARENT - NO_FILE_OF_TEXT))
def test_every_verb_names_a_reference_that_leads_nowhere(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, name = tmp_path / "a.yaml", REFERRING.get(command, "run")
    every = command in ("generate", "fit")  # the others share their parsers
    for reference, said in (
        ("${oc.env:LIT_PRETRAIN_NOWHERE}", "LIT_PRETRAIN_NOWHERE is not set"),
        ("${nowhere}", "'nowhere' not found"),
        ("${", "cannot be resolved"),
        (f"${{{name}}}", "Recursive"),
    )[: None if every else 1]:
        config.write_text(f"{name}: '{reference}'\n")
        assert call(*command.split(), "--config", config) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {config}: {name}: "), error
        assert said in error


@pytest.mark.parametrize(
    "command",
    "generate, chat, serve, validate, test, evaluate, inspect run, inspect order, export out,"
    " merge out, adapter export out".split(", "),
)
def test_every_verb_takes_its_run_by_place_and_by_name(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.split()
    rest = [words.pop()] if words[-1] == "out" else []
    said = []
    for run in (["nowhere"], ["--run", "nowhere"], ["--run=nowhere"]):
        assert call(*words, *run, *rest) == 2
        said.append(capsys.readouterr().err)
    assert "nowhere" in said[0]
    assert "rguments" not in said[0]
    assert said[0] == said[1] == said[2]
    assert call(*words, "nowhere", "--run=elsewhere", *rest) == 2
    twice = "unrecognized arguments: out" if rest else "nowhere"
    assert twice in capsys.readouterr().err
    assert call(*words, "--run=", *rest) == 2
    assert "--run is empty" in capsys.readouterr().err


def test_a_terminal_of_another_encoding_shows_the_rest_by_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr("lit_pretrain.__main__.main", lambda: print("é 中") or 0)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert lit_pretrain.__main__.command() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert shown.buffer.getvalue() == b"\xe9 \\u4e2d\n"


def test_a_task_file_that_is_not_strict_is_one_line(
    chat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="needs the eval extra")
    task = tmp_path / "task.yaml"
    for content, said in (
        (b"task: caf\xe9\n", "is not UTF-8"),
        (b"task: a\ntask: b\n", "given twice, in line 1 and in line 2"),
        (b"task: a\n", "cannot be loaded"),
        (b"task: a\ndataset_path: !function nowhere.f\n", "cannot be loaded"),
    ):
        task.write_bytes(content)
        assert call("evaluate", chat_run, f"--tasks={task}", "--held_out=false") == 2
        assert said in capsys.readouterr().err


NAMES_OF_RUNS = ("", " ", ".", "..", "a/b", "/tmp/a", "a\\b", "a\nb", "a\0b", " a", "a" * 300)


@pytest.mark.parametrize("name", NAMES_OF_RUNS)
def test_a_run_has_a_plain_name(name: str) -> None:
    with pytest.raises(UserError, match=r"--name .* must be a plain name"):
        check_run_name(name)
    for plain in ("run-1", ".hidden", "ünï", "a b", "2024"):
        check_run_name(plain)


def test_a_name_that_is_no_name_is_refused_by_the_verbs(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("", ".."):
        assert call("fit", f"--data.path={dataset}", f"--runs={tmp_path}/r", f"--name={name}") == 2
        assert "must be a plain name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert call("serve", f"--run={tmp_path}", "--name=") == 2
    assert "--name='' is not a name" in capsys.readouterr().err


def test_an_argument_that_is_not_utf8_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        ("generate", "--run=x", "--prompt=caf\udce9"),
        ("fit", "--name", "\udcff"),
        ("plan", "\udcc3"),
    ):
        assert call(*args) == 2
        assert "is not UTF-8" in capsys.readouterr().err


def test_windows_is_told_what_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.warns(UserWarning, match=r"on Windows lit_pretrain only reads.*WSL 2"):
        importlib.reload(lit_pretrain)
    for verb in sorted(NEED_POSIX):
        assert call(verb, "--help") == 2
        assert "does not work on Windows" in capsys.readouterr().err
    assert verbs().keys() > NEED_POSIX


ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": "7"}]}
    for n in range(200)
]
SHAPE = (
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=128", "--model.compile=off", "--trainer.accelerator=cpu",
    "--sample_prompts=[]",
)  # fmt: skip


def test_a_class_without_options_works_with_its_defaults(
    dataset: Path,
    tmp_path: Path,
    write_rows: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = call(
        "fit", "--data=lit_pretrain.data.ChatData", f"--data.path={write_rows(ROWS)}",
        f"--data.tokenizer={dataset}", "--data.seq_len=64", *SHAPE, f"--runs={tmp_path}",
        "--name=chat",
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "done: " in out


def test_the_command_line_replaces_a_length_and_a_step_of_the_file(
    dataset: Path,
    tmp_path: Path,
    write_rows: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "rows.yaml"
    config.write_text(
        "max_epochs: 3\ndata:\n  class_path: lit_pretrain.data.ChatData\n  init_args:\n"
        f"    path: {write_rows(ROWS)}\n    tokenizer: {dataset}\n    seq_len: 64\n"
        "    global_batch_tokens: 512\n"
    )
    code = call(
        "fit", "--max_steps=2", "--data.global_batch_rows=4", "--config", config, *SHAPE,
        f"--runs={tmp_path}", "--name=short", "--sample_prompts=['${seed}']",
    )  # fmt: skip
    err = capsys.readouterr().err
    assert code == 0, err
    assert f"max_steps: 2 of the command line replaces max_epochs: 3 of {config}" in err
    assert "data.global_batch_rows: 4 of the command line replaces data.init_args.global_" in err
    saved = tmp_path / "short" / "config.yaml"
    settled = read_config(saved)
    assert (settled["max_steps"], settled["max_epochs"]) == (2, None)
    assert settled["data"]["init_args"]["global_batch_rows"] == 4
    assert settled["sample_prompts"] == ["${seed}"]
    # The saved config reads as the same config, with the text that looks like a reference.
    assert call("fit", "--config", saved, "--resume=auto", "--print_config") == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert read_config(again)["sample_prompts"] == ["${seed}"]


def test_a_start_that_fails_leaves_the_name(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = (
        "fit", f"--data.path={dataset}", "--data.seq_len=32", "--data.micro_batch_size=8",
        "--data.global_batch_tokens=256", "--data.val_tokens=256", "--max_steps=1", *SHAPE,
        f"--runs={tmp_path}", "--name=again",
    )  # fmt: skip
    for failure in (UserError("no"), RuntimeError("out of memory"), KeyboardInterrupt()):

        def fail(*_: object, failure: BaseException = failure, **__: object) -> None:
            raise failure

        with monkeypatch.context() as patched:
            patched.setattr("lit_pretrain.stage.stage.Stage.training_step", fail)
            with contextlib.suppress(RuntimeError):
                assert call(*args) != 0
            assert "already holds a run" not in capsys.readouterr().err
    assert call(*args) == 0
    capsys.readouterr()
    assert call(*args) == 2
    assert "already holds a run" in capsys.readouterr().err
