"""Hangs and schedulers' signals in real processes: they end in time, say where every rank stood,
and the run goes on from its last checkpoint.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import checkpoints
from lit_pretrain.report.run_state import read_attempt
from tests.test_resume import losses

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, LIMIT = 6, 3.0
BASE = [
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64", "--model.compile=off", "--data.seq_len=32",
    "--data.global_batch_tokens=256", "--data.micro_batch_size=4", "--data.val_tokens=512",
    f"--max_steps={STEPS}", "--log_every=1", "--validate_every=0", "--checkpoint_every=2",
    "--sample_prompts=[]", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
]  # fmt: skip
SLEEPER = """
import time
import lightning as L
from lit_pretrain.callbacks import checkpoints

class Sleeper(L.Callback):
    '''Says "now" in a hook at a step, and sleeps.'''

    def __init__(self, hook: str, step: int, ranks: tuple[int, ...] = (0,)) -> None:
        self.step, self.ranks = step, ranks
        setattr(self, hook, self.sleep)

    def sleep(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            if trainer.is_global_zero:
                print("now", flush=True)
            if trainer.global_rank in self.ranks:
                end = time.monotonic() + 600
                while time.monotonic() < end:
                    time.sleep(0.05)


class SlowDisk(L.Callback):
    '''Lets the writing of a checkpoint take long.'''

    def __init__(self) -> None:
        checkpoints.write_checkpoint = lambda checkpoint, path: time.sleep(600)
"""


class Running:
    """`lit_pretrain fit` in a process of its own.

    Args:
        arguments: Of the verb.
        folder: Where it runs, and finds modules.
    """

    def __init__(self, *arguments: object, folder: Path) -> None:
        places = os.pathsep.join([str(ROOT), str(folder)])
        given = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": places}
        command = [sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit"]
        self.output = (folder / f"output-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)], cwd=folder, env=os.environ | given,
            stdout=self.output, stderr=self.output,
        )  # fmt: skip

    @property
    def text(self) -> str:
        return Path(self.output.name).read_text()

    def read_until(self, wanted: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while wanted not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def children(self) -> list[int]:
        """Processes that the first one has started."""
        me = self.process.pid
        return [int(p) for p in Path(f"/proc/{me}/task/{me}/children").read_text().split()]

    def end(self, seconds: float) -> tuple[int, str]:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still there after {seconds:g} s:\n{self.text}") from None
        return code, self.text


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the callback and the run `whole`, in which nothing hangs."""
    folder = tmp_path_factory.mktemp("hung")
    (folder / "sleeping.py").write_text(SLEEPER)
    assert main(["fit", *BASE, f"--data.path={dataset}", f"--runs={folder}", "--name=whole"]) == 0
    return folder


def places(folder: Path, dataset: Path, name: str) -> list[str]:
    return [*BASE, f"--data.path={dataset}", f"--runs={folder}", f"--name={name}"]


def sleeper(hook: str, step: int, *ranks: int) -> list[str]:
    return [
        "--trainer.callbacks+=sleeping.Sleeper", f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.step={step}", f"--trainer.callbacks.ranks={list(ranks)}",
    ]  # fmt: skip


def wait_for_end(process: int) -> None:
    deadline, stat = time.monotonic() + 5, Path(f"/proc/{process}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, stat.read_text()
        time.sleep(0.05)


def wait_for_handler(process: int, number: int) -> None:
    """Wait until a process answers a signal by itself."""
    deadline, status = time.monotonic() + 30, Path(f"/proc/{process}/status")
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) >> number - 1 & 1:
        assert time.monotonic() < deadline, status.read_text()
        time.sleep(0.01)


def test_one_process_that_hangs_ends_and_goes_on(folder: Path, dataset: Path) -> None:
    arguments = places(folder, dataset, "hung")
    run = Running(
        *arguments, f"--hang_timeout={LIMIT}", *sleeper("on_train_batch_start", 3, 0), folder=folder
    )
    run.read_until("now")
    code, text = run.end(LIMIT + 10)
    assert code == 76, text
    told = f"error: rank 0 (process {run.process.pid} on "
    what = r"has made no progress for 3 s \(hang_timeout=3\), in step 4"
    assert re.search(rf"{re.escape(told)}\S+\) {what}", text)
    report = folder / "hung" / "hang" / "rank-0.txt"
    assert f"what every thread was doing: {report}" in text
    assert "sleeping.py" in report.read_text()
    assert "go on with" in text
    state, reason = read_attempt(folder / "hung") or ("", "")
    assert state == "failed"
    assert "has made no progress" in str(reason)
    assert main(["fit", *arguments, "--resume=auto"]) == 0
    assert losses(folder / "hung") == losses(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_ends_the_others(stopped: int, folder: Path, dataset: Path) -> None:
    """Whichever it is, the command ends with the code of a hang and leaves no process behind."""
    name = f"stopped-{stopped}"
    run = Running(
        *places(folder, dataset, name), "--trainer.devices=2", f"--hang_timeout={LIMIT}",
        "--max_steps=100000", "--data.num_workers=0", folder=folder,
    )  # fmt: skip
    run.read_until("step 3/")
    other = run.children()[0]
    os.kill([run.process.pid, other][stopped], signal.SIGSTOP)
    code, text = run.end(LIMIT + 10)
    assert code == 76, text
    pid = [run.process.pid, other][stopped]
    assert re.search(
        rf"error: rank {1 - stopped} .* rank {stopped} \(process {pid} on \S+\) is stopped or gone",
        text,
    )
    wait_for_end(other)


@pytest.mark.slow
def test_a_loader_that_has_lost_its_batch_ends_the_run(folder: Path, dataset: Path) -> None:
    run = Running(
        *places(folder, dataset, "lost"), "--data.num_workers=1", f"--hang_timeout={LIMIT}",
        "--max_steps=100000", folder=folder,
    )  # fmt: skip
    run.read_until("step 3/")
    workers = [
        pid for pid in run.children()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]  # fmt: skip
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGSTOP)
    code, text = run.end(LIMIT + 30)  # a worker reads ahead, and the steps go on for as long
    assert code == 76, text
    assert "after step" in text
    wait_for_end(workers[0])


@pytest.mark.parametrize(
    ("number", "seen", "hook"),
    [
        (signal.SIGTERM, "", None),
        (signal.SIGUSR1, "now", "on_fit_start"),
    ],
    ids=["imports", "set-up"],
)
def test_a_signal_before_the_first_step(
    number: int, seen: str, hook: str | None, folder: Path, dataset: Path
) -> None:
    """It does not use up the name of the run."""
    name = f"early-{number}"
    run = Running(
        *places(folder, dataset, name), *([] if hook is None else sleeper(hook, 0, 0)),
        folder=folder,
    )  # fmt: skip
    if seen:
        run.read_until(seen)
    else:
        wait_for_handler(run.process.pid, number)
        time.sleep(0.5)  # the imports take longer
    run.process.send_signal(number)
    code, text = run.end(15)
    assert code == 75, text
    assert f"stopped by {signal.Signals(number).name} outside of training" in text
    assert "Traceback" not in text
    if seen:
        state, _ = read_attempt(folder / name) or ("", "")
        assert state == "stopped"
    assert main(["fit", *places(folder, dataset, name), "--max_steps=1"]) == 0


@pytest.mark.parametrize(
    ("name", "extra", "kept"),
    [
        ("twice", [], ["step=00000002.ckpt"]),
        ("saving", ["--async_checkpoints=true", "--trainer.callbacks+=sleeping.SlowDisk"], []),
    ],
)
def test_a_second_sigterm_ends_at_once(
    folder: Path, dataset: Path, name: str, extra: list[str], kept: list[str]
) -> None:
    """It waits neither for the step nor for a thread that saves an earlier one."""
    run = Running(
        *places(folder, dataset, name), *sleeper("on_train_batch_start", 3, 0), *extra,
        folder=folder,
    )  # fmt: skip
    run.read_until("now")
    run.process.terminate()
    time.sleep(0.7)  # not the same one, passed on by a launcher
    run.process.terminate()
    code, text = run.end(15)
    assert code == 75, text
    assert "stopped by a second SIGTERM: ends at once, and saves nothing after step 3" in text
    assert [path.name for path in checkpoints(folder / name)] == kept
