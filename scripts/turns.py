"""Turns: programs that take steps in turn, so that disturbances of the machine hit all alike.

With whole programs one after the other, medians of the same program differed by 10 % on a shared
machine.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch

WARM = 3
"""First steps of each contestant that do not count."""
PIPES = "TURNS_PIPES"


class Turns:
    """A contestant's end of the pipes."""

    def __init__(self) -> None:
        self.read, self.write = (int(number) for number in os.environ[PIPES].split(","))

    def wait(self) -> None:
        """Say that the last step has ended, and wait for the next turn."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        os.write(self.write, b".")
        os.read(self.read, 1)


class TakeTurns(L.Callback):
    """Let a run of `lit_pretrain fit` wait for its turn before each step.

    --trainer.callbacks+=turns.TakeTurns
    """

    def __init__(self) -> None:
        self.turns = Turns()

    def on_train_batch_start(self, *args: Any) -> None:
        """Wait; a step is everything from here to the next batch: computing, logging, loading."""
        self.turns.wait()


class Contestant:
    """A contestant's process, from the other end: started, and warm."""

    def __init__(self, command: list[str]) -> None:
        self.seconds: list[float] = []
        """Of each step that counts."""
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.read, there_write = os.pipe()
        there_read, self.write = os.pipe()
        path = os.pathsep.join(
            filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
        )
        environment = os.environ | {PIPES: f"{there_read},{there_write}", "PYTHONPATH": path}
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=self.log,
            env=environment,
            pass_fds=[there_read, there_write],
        )
        os.close(there_read)
        os.close(there_write)
        self._await()
        self.step()
        self.start_seconds = time.perf_counter() - began
        """From the start of the process to the end of its first step."""
        for _ in range(WARM - 1):
            self.step()
        self.seconds.clear()

    def step(self) -> None:
        """Let it take one step."""
        began = time.perf_counter()
        os.write(self.write, b".")
        self._await()
        self.seconds.append(time.perf_counter() - began)

    def finish(self) -> str:
        """Let it end, and return what it printed."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already: its exit code says how
            os.write(self.write, b"." * 2)
        code = self.process.wait()
        self.log.seek(0)
        text = self.log.read()
        if code:
            sys.exit(f"{self.process.args!r}\nfailed with {code}:\n{text}")
        return text

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def _await(self) -> None:
        if not os.read(self.read, 1):
            self.finish()


def take_turns(contestants: Iterable[Contestant], steps: int) -> None:
    """Let each take so many steps less one, in turn; the last one is left to `finish`."""
    contestants = list(contestants)
    for _ in range(steps - 1):
        for contestant in contestants:
            contestant.step()
