"""Watchdog: end a run that makes no progress, and say which rank stands where.

A rank that is stopped, a loader that has lost a batch or a file system that does not answer block
every rank of a run for ever, in calls that Python cannot interrupt. A thread in each rank sees it.
"""

import contextlib
import faulthandler
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_pretrain.callbacks.graceful_stop import GracefulStop
from lit_pretrain.errors import HUNG_EXIT_CODE, UserError
from lit_pretrain.report.run_state import record_failure

HANG_FOLDER = "hang"
"""Folder in a run's folder in which each rank says that it lives, and where it stood when not."""
LONGEST_POLL = 2.0
"""Seconds between two looks, at most; shorter limits are looked at ten times."""
REPORT_SECONDS = 3.0
"""How long the first rank waits for the reports of the others before it ends them."""
START_SECONDS = 300.0
"""The least limit until training begins, and for a first step that compiles: imports on a busy file
system and the compiler take their time, and are no hangs.
"""
SHOWN_RANKS = 8


class Sign(NamedTuple):
    """A rank's last sign of life, as the other ranks read it."""

    doing: str
    idle: float
    """Seconds without progress when it was given."""
    process: int
    host: str
    age: float = 0.0
    """Seconds since it was given, by the clock of the file system."""


class Watchdog(L.Callback):
    """End this process when no rank of the run has made progress for `limit` seconds.

    Progress is a batch, a checkpoint, or a request of an evaluation. The time in which this process
    itself is suspended, by Ctrl-Z or by a lid that closes, does not count: the thread counts its
    own looks, and not the clock.

    Args:
        run: The run's folder. Ranks on machines that do not share it know nothing of each other.
        limit: Seconds; None watches nothing. Until the first step it is `START_SECONDS` at least.
        stop: Knows how to resume.

    Raises:
        UserError: The limit is not positive.
    """

    def __init__(self, run: Path, limit: float | None, stop: GracefulStop) -> None:
        if limit is not None and not 0 < limit < float("inf"):
            raise UserError(
                f"hang_timeout={limit:g} must be a positive number of seconds; null watches nothing"
            )
        self.folder = run / HANG_FOLDER
        self.limit = limit
        self.stop = stop
        self.doing = "starting"
        self._idle = 0.0
        self._least = START_SECONDS
        self._began = math.inf
        """When this rank gave its first sign of life, by the clock of the file system."""

    def beat(self, doing: str | None = None) -> None:
        """Note progress.

        Args:
            doing: What begins now; None goes on with the same.
        """
        if doing is not None:
            self.doing = doing
        self._idle = 0.0

    # ------------------------------------------------------------------ Lightning's hooks

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Note that the first batch is awaited."""
        self.beat("waiting for its first batch")
        if not pl_module.net.is_compiled:
            self._least = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        """Note that a batch has come."""
        self.beat(f"in step {trainer.global_step + 1}")

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        """Note that a step is done."""
        self.beat(f"after step {trainer.global_step}")
        self._least = 0.0

    def on_validation_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        """Note that a batch of the validation has come."""
        self.beat(f"in the validation at step {trainer.global_step}")

    def on_validation_end(self, trainer: L.Trainer, *args: object) -> None:
        """Note that the validation is done."""
        self.beat(f"after the validation at step {trainer.global_step}")

    def on_save_checkpoint(self, trainer: L.Trainer, *args: object) -> None:
        """Note that the weights are gathered for a checkpoint; where it hangs, the stacks say."""
        self.beat()

    # ------------------------------------------------------------------ the thread

    @contextlib.contextmanager
    def watching(self, trainer: L.Trainer) -> Iterator[None]:
        """Watch over what happens within.

        Args:
            trainer: Whose ranks these are.
        """
        if self.limit is None:
            yield
            return
        left = threading.Event()
        thread = threading.Thread(target=self._watch, args=(trainer, self.limit, left), daemon=True)
        self.beat("starting")
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()
            self._sign(trainer).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # missing, or with reports of this or other ranks
                self.folder.rmdir()

    def _watch(self, trainer: L.Trainer, limit: float, left: threading.Event) -> None:
        poll = min(LONGEST_POLL, limit / 10)
        before = time.monotonic()
        while not left.wait(poll):
            now = time.monotonic()
            # Time in which the process itself stood still, as after Ctrl-Z, is no time without
            # progress.
            self._idle += min(now - before, 2 * poll)
            before, most = now, max(limit, self._least)
            others = self._exchange(trainer) if trainer.world_size > 1 else {}
            hung = self._idle >= most and all(
                sign is None or sign.idle + sign.age >= most for sign in others.values()
            )
            # A rank that was stopped has not counted the time, but the others have given up.
            if hung or self._gave_up(others):
                self._end(trainer, limit, others)

    def _gave_up(self, ranks: Iterable[int]) -> bool:
        """Tell whether another rank has reported since this one began."""
        for rank in ranks:
            with contextlib.suppress(OSError):  # it has not
                if self._report(rank).stat().st_mtime > self._began:
                    return True
        return False

    def _report(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.txt"

    def _sign(self, trainer: L.Trainer, rank: int | None = None) -> Path:
        rank = trainer.global_rank if rank is None else rank
        return self.folder / f"rank-{rank}.json"

    def _exchange(self, trainer: L.Trainer) -> dict[int, Sign | None]:
        """Give a sign of life, and read those of the other ranks; None where there is none."""
        others: dict[int, Sign | None] = {}
        own = Sign(self.doing, self._idle, os.getpid(), platform.node())
        now = 0.0
        if self.folder.parent.is_dir():
            with contextlib.suppress(OSError):  # a full disk is not for this thread to report
                self.folder.mkdir(exist_ok=True)
                scratch = self._sign(trainer).with_suffix(".tmp")
                scratch.write_text(json.dumps(own[:4]), encoding="utf-8")
                now = scratch.stat().st_mtime
                self._began = min(self._began, now)
                scratch.replace(self._sign(trainer))
        for rank in set(range(trainer.world_size)) - {trainer.global_rank}:
            file = self._sign(trainer, rank)
            try:
                # Both by the clock of the file system, because those of machines differ.
                age = max(0.0, now - file.stat().st_mtime)
                doing, idle, process, host = json.loads(file.read_text(encoding="utf-8"))
                others[rank] = Sign(doing, float(idle), process, host, age)
            except (OSError, ValueError, TypeError):
                others[rank] = None
        return others

    def _end(self, trainer: L.Trainer, limit: float, others: dict[int, Sign | None]) -> None:
        """Report, end what this process has started, and end it."""
        rank, host = trainer.global_rank, platform.node()
        head = (
            f"rank {rank} (process {os.getpid()} on {host}) has made no progress for"
            f" {self._idle:.0f} s (hang_timeout={limit:g}), {self.doing}"
        )
        text = "; ".join([head, *accounts(others, silent=3 * min(LONGEST_POLL, limit / 10) + 1)])
        report = self._report(rank)
        try:
            self.folder.mkdir(exist_ok=True)
            with report.open("w", encoding="utf-8") as file:
                print(f"{text}\n", file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            where = f"\nwhat every thread was doing: {report}"
        except OSError as error:
            where = f"\n{report} cannot be written: {error.strerror or error}"
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        os.write(2, f"error: {text}{where}\n{self.stop.go_on}\n".encode())
        if trainer.is_global_zero:
            record_failure(self.folder.parent, text)
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            if launcher.procs:
                processes = list(launcher.procs)
                launcher.procs.clear()  # their end is no failure that Lightning has to answer
                self._await_reports([r for r, sign in others.items() if sign is not None])
                for process in processes:
                    process.kill()
            elif rank > 0:
                self._await_parent()
        for child in multiprocessing.active_children():
            child.kill()
        # Not sys.exit, which would end this thread alone.
        os._exit(HUNG_EXIT_CODE)

    def _await_reports(self, ranks: Iterable[int]) -> None:
        deadline = time.monotonic() + REPORT_SECONDS
        while time.monotonic() < deadline and not all(self._gave_up([rank]) for rank in ranks):
            time.sleep(0.05)

    def _await_parent(self) -> None:
        """Let the first rank, which has launched this one, end first: its exit code is the run's.

        If it is the one that is stopped, it is woken up, to find that this one has given up.
        """
        parent = os.getppid()

        def ends() -> bool:
            deadline = time.monotonic() + REPORT_SECONDS + 1
            while os.getppid() == parent and time.monotonic() < deadline:
                time.sleep(0.05)
            return os.getppid() != parent

        if not ends():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended now
                os.kill(parent, signal.SIGCONT)
            ends()


def accounts(others: dict[int, Sign | None], *, silent: float) -> list[str]:
    """Say in words where the other ranks stand, those first that all others may be waiting for.

    Args:
        others: The last sign of each rank.
        silent: Seconds without a sign after which a rank counts as stopped.
    """
    ranked = []
    for rank, sign in others.items():
        if sign is None:
            ranked.append((1, f"rank {rank} has given no sign of life"))
            continue
        who = f"rank {rank} (process {sign.process} on {sign.host})"
        if sign.age > silent:
            text = f"{who} is stopped or gone: its last sign of life is {sign.age:.0f} s old"
            ranked.append((0, text))
        else:
            idle = sign.idle + sign.age
            ranked.append((2, f"{who} has made no progress for {idle:.0f} s, {sign.doing}"))
    ranked.sort(key=lambda each: each[0])
    more = len(ranked) - SHOWN_RANKS
    return [text for _, text in ranked[:SHOWN_RANKS]] + ([f"and {more} more"] if more > 0 else [])
