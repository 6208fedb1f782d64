"""Ctrl-C in a real terminal: the first saves and says how to go on, the second ends at once,
and none ends in a traceback.
"""

import json
import os
import pty
import re
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.stage.stage import Stage
from tests.test_resume import losses

ROOT = Path(__file__).parents[1]
STEPS = 8
BASE = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64",
    "--model.compile=off", "--data.seq_len=32", "--data.global_batch_tokens=256",
    "--data.micro_batch_size=8",
    "--data.val_tokens=512", f"--max_steps={STEPS}", "--log_every=1", "--validate_every=3",
    "--checkpoint_every=0", "--sample_prompts=[]", "--trainer.accelerator=cpu",
]  # fmt: skip
PAUSE = """
import sys, time
import lightning as L

class Pause(L.Callback):
    '''Says "now" in a hook at a step, and then takes its time.'''

    def __init__(self, hook: str, step: int, seconds: float = 2.0) -> None:
        self.step, self.seconds = step, seconds
        setattr(self, hook, self.pause)

    def pause(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            print("now", flush=True)
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:
                time.sleep(0.05)
"""
SLEEPY = """
import time

def sleep(document, view):
    print("now", flush=True)
    time.sleep(600)
"""


class Terminal:
    """`lit_pretrain` as the foreground process of a terminal of its own.

    Args:
        arguments: Of the command.
        folder: Where it runs, and finds modules.
    """

    def __init__(self, *arguments: object, folder: Path) -> None:
        self.text = ""
        places = os.pathsep.join([str(ROOT), str(folder)])
        given = {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": places,
            "TERM": "xterm",
        }
        command = [sys.executable, "-W", "ignore", "-m", "lit_pretrain", *map(str, arguments)]
        self.process, self.screen = pty.fork()
        if self.process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever started these tests
            os.chdir(folder)
            os.execve(command[0], command, os.environ | given)

    def read(self, done: Callable[[str], bool], seconds: float = 240) -> None:
        """Read what appears until something has appeared, or the command has ended."""
        end = time.monotonic() + seconds
        while not done(self.text):
            assert time.monotonic() < end, self.text
            if select.select([self.screen], [], [], 0.05)[0]:
                try:
                    data = os.read(self.screen, 65536)
                except OSError:  # how Linux says that nobody writes any more
                    return
                self.text += re.sub(
                    r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace")
                ).replace("\r", "\n")

    def press_at(self, text: str) -> None:
        """Press Ctrl-C when a text has appeared."""
        self.read(lambda seen: text in seen)
        assert text in self.text
        os.write(self.screen, b"\x03")

    def end(self) -> tuple[int, str]:
        """What a shell would call the exit code, and all that appeared."""
        self.read(lambda seen: False)
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.screen)
        assert "Traceback" not in self.text
        return (code if code >= 0 else 128 - code), self.text


@pytest.fixture(scope="module")
def folder(one_thread: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the callback and the run `whole`, which nobody interrupts."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "pausing.py").write_text(PAUSE)
    assert main(["fit", *BASE, f"--data.path={dataset}", f"--runs={folder}", "--name=whole"]) == 0
    return folder


@pytest.fixture
def one_process(folder: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs in this process, which must find the callback."""
    monkeypatch.syspath_prepend(str(folder))


def fit(folder: Path, dataset: Path, name: str, hook: str, step: int, *extra: str) -> Terminal:
    pause = [
        "--trainer.callbacks+=pausing.Pause",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.step={step}",
    ]
    places = [f"--data.path={dataset}", f"--runs={folder}", f"--name={name}"]
    return Terminal("fit", *BASE, *places, *pause, *extra, folder=folder)


@pytest.mark.parametrize(
    ("hook", "step", "saved", "extra"),
    [
        pytest.param("on_train_batch_start", 4, 5, [], id="step"),
        pytest.param("on_validation_batch_start", 3, 3, [], id="validation"),
        pytest.param(
            "on_validation_batch_start", STEPS, STEPS, [],
            id="last-validation", marks=pytest.mark.slow,
        ),
        pytest.param("on_save_checkpoint", 4, 4, ["--checkpoint_every=4"], id="save"),
        pytest.param(
            "on_train_batch_start", 4, 5,
            ["--trainer.devices=2", "--data.micro_batch_size=4", "--trainer.precision=32-true"],
            id="two-ranks", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_the_first_saves_and_the_command_that_it_prints_goes_on(
    folder: Path,
    dataset: Path,
    hook: str,
    step: int,
    saved: int,
    extra: list[str],
    one_process: None,
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.id
    terminal = fit(folder, dataset, name, hook, step, *extra)
    terminal.press_at("now")
    code, text = terminal.end()
    assert code == 130, text
    file = folder / name / "checkpoints" / f"step={saved:08d}.ckpt"
    assert (
        text.count("stopping: saves after this step")
        == text.count(f"stopped by SIGINT after step {saved}; saved {file}; ")
        == 1
    )
    assert sorted(path.suffix for path in file.parent.iterdir()) == [
        ".ckpt"
    ]  # nothing torn, and no record of a validation
    command = shlex.split(text.partition("go on with: ")[2])
    alone = ["--trainer.devices=1", "--data.micro_batch_size=8"] if extra[1:] else []
    assert main([*command[1:], "--trainer.callbacks=null", *alone]) == 0
    if not extra[1:]:  # another number of ranks sums in another order
        assert losses(folder / name) == losses(folder / "whole")
    assert [line[0] for line in losses(folder / name)] == [
        line[0] for line in losses(folder / "whole")
    ]
    assert (folder / name / "summary.md").exists()


def test_the_second_ends_at_once(folder: Path, dataset: Path) -> None:
    terminal = fit(
        folder, dataset, "twice", "on_train_batch_start", 4, "--trainer.callbacks.seconds=600"
    )
    terminal.press_at("now")
    terminal.read(lambda seen: "stopping: saves after this step" in seen)
    time.sleep(0.7)  # not the same Ctrl-C, passed on by a launcher
    terminal.press_at("now")
    code, text = terminal.end()
    assert (code, text.count("interrupted\n")) == (130, 1), text
    assert not list((folder / "twice").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("hook", "extra"),
    [
        pytest.param("on_fit_start", [], id="set-up"),
        pytest.param("on_train_batch_start", [], id="first-step"),
        pytest.param("on_train_batch_start", ["--data.num_workers=1"], id="first-step-workers"),
    ],
)
def test_before_there_is_anything_to_save_the_first_ends_at_once(
    folder: Path, dataset: Path, hook: str, extra: list[str]
) -> None:
    name = f"early-{hook}-{len(extra)}"
    terminal = fit(folder, dataset, name, hook, 0, "--trainer.callbacks.seconds=600", *extra)
    terminal.press_at("now")
    code, text = terminal.end()
    assert (code, text.count("interrupted\n")) == (130, 1), text
    assert not list((folder / name).glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("seen", "extra"),
    [
        pytest.param("", [], id="imports"),
        pytest.param("plan: ", [], id="data"),
        pytest.param(
            "GLOBAL_RANK: 0", ["--trainer.devices=2", "--data.micro_batch_size=4"], id="waits"
        ),
    ],
)
def test_while_it_starts(folder: Path, dataset: Path, seen: str, extra: list[str]) -> None:
    """Leaves no process behind: the terminal is read until nobody writes to it any more."""
    name, forever = f"starts-{len(seen)}", "--trainer.callbacks.seconds=600"
    terminal = fit(folder, dataset, name, "on_fit_start", 0, forever, *extra)
    if not seen:
        time.sleep(1)
    terminal.press_at(seen)
    code, text = terminal.end()
    assert (code, text.count("interrupted\n")) == (130, 1), text


def test_a_validation_alone(
    folder: Path,
    one_process: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Lightning makes an exit with 1 of it."""

    def press(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "validation_step", press)
    assert main(["validate", f"--run={folder / 'whole'}"]) == 130
    assert capfd.readouterr().err.endswith("interrupted\n")


def test_preparation_in_several_processes(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    for name in ("a", "b"):
        (tmp_path / "rows" / f"{name}.jsonl").write_text('{"text": "Some words of text."}\n')
    source = {
        "kind": "jsonl",
        "path": str(tmp_path / "rows"),
        "licence": "CC0-1.0",
        "origin": "here",
        "filters": ["sleepy.sleep"],
    }
    (tmp_path / "prepare.yaml").write_text(json.dumps({"sources": {"text": source}}))
    terminal = Terminal(
        "prepare", "--config=prepare.yaml", "--out=out", "--workers=2", folder=tmp_path
    )
    terminal.press_at("now")
    code, text = terminal.end()
    assert (code, text.count("interrupted\n")) == (130, 1), text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("verb", "log_every"), [("fit", 1), ("fit", 100), ("finetune", 1)])
def test_the_time_limit_saves_and_goes_on(
    folder: Path,
    dataset: Path,
    verb: str,
    log_every: int,
    one_process: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It counts from the start of the program, so that every attempt here makes one step."""
    name = f"limited-{verb}-{log_every}"
    options = [
        *BASE,
        f"--data.path={dataset}",
        f"--runs={folder}",
        f"--name={name}",
        f"--log_every={log_every}",
    ]
    options += [] if verb == "fit" else [f"--from={folder / 'whole'}"]
    assert main([verb, *options, "--trainer.max_time={milliseconds: 1}"]) == 75
    said = capsys.readouterr().err
    assert (
        "stopped by trainer.max_time after step 1; saved"
        f" {folder / name / 'checkpoints' / 'step=00000001.ckpt'}; " in said
    )
    command = shlex.split(said.partition("go on with: ")[2])
    assert main([*command[1:], "--trainer.max_time=00:01:00:00"]) == 0
    if (verb, log_every) == ("fit", 1):
        assert losses(folder / name) == losses(folder / "whole")
    assert (folder / name / "summary.md").exists()
