"""Ranks: the processes of one run, as one process to the person who started it."""

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_pretrain.callbacks.graceful_stop import ECHO_SECONDS, SIGNALS, GracefulStop
from lit_pretrain.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, UserError, warn
from lit_pretrain.stage.guard import Spike

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables in which torchrun, Lightning and Slurm number their processes."""
LAUNCHED_NAME = "LIT_PRETRAIN_LAUNCHED_NAME"
"""Environment variable by which the first process of a run tells those that it launches the
run's name.
"""
PATIENCE_SECONDS = 10.0
"""How long a launched process waits for the first one to report."""
ANSWER_SECONDS = 2.0
"""How long a signal may remain without an answer where it is not to wait for the step."""
GRACE_SECONDS = 3.0
"""How long the first process looks whether another one has failed before it."""


def is_first_process() -> bool:
    """Tell whether this process makes the run folder, before there is a Trainer."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


def check_restarts() -> None:
    """Warn of a torchrun whose restarts find the addresses of the processes before them.

    torchrun keeps one store over its restarts, in which the ranks leave their addresses. A rank
    that starts sooner than another reads the old one and cannot connect
    (pytorch/pytorch#135712, #167288); whether it does is a matter of luck.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and is_first_process():
        warn(
            "torchrun --max-restarts shares one store between restarts, and ranks may look for"
            " those that have died: start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )


@contextmanager
def listening(trainer: Trainer, stop: GracefulStop) -> Iterator[None]:
    """End for a signal that Python does not get to: its main thread waits for other ranks in C++.

    So it does until they have started, and for ever when one of them hangs.

    Args:
        trainer: Lightning's.
        stop: What answers signals once training has begun.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    launcher = trainer.strategy.launcher
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()

    def listen() -> None:
        seen: dict[int, float] = {}
        while number := os.read(reader, 1):
            which = number[0]
            if which not in SIGNALS:
                continue
            now, before = time.monotonic(), seen.get(which, math.inf)
            again = which in seen and now - before > ECHO_SECONDS
            seen[which] = now
            # The first one in training is answered after the step, however long that takes.
            if (again or not stop.listens) and not left.wait(ANSWER_SECONDS):
                # Looked up now: Lightning makes a new list when it launches.
                for process in getattr(launcher, "procs", []):
                    process.kill()
                keyboard = which == signal.SIGINT
                text = "interrupted" if keyboard else f"stopped by {signal.Signals(which).name}"
                os.write(2, f"{text}\n".encode())
                os._exit(INTERRUPTED_EXIT_CODE if keyboard else PREEMPTED_EXIT_CODE)

    thread = threading.Thread(target=listen, daemon=True)
    others = signal.set_wakeup_fd(writer)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(others)
        os.close(writer)
        thread.join()
        os.close(reader)


@contextmanager
def one_voice(trainer: Trainer) -> Iterator[None]:
    """Let the first process report what all of them know, and end with all of them.

    When all ranks stop for the same reason, Lightning's launcher kills the first one if it sees
    another end before it: the report and the exit code would be lost. So a launched process waits
    for the first to end and then ends silently. If the first one does not end, it does not know of
    the mistake and waits in a collective: then this process reports, and its end lets the launcher
    stop the others.

    Likewise the first process, when it stops, ends those it has launched: they could wait for it in
    a collective for long.
    """
    launcher = trainer.strategy.launcher
    launched = (
        isinstance(launcher, _SubprocessScriptLauncher)
        and trainer.local_rank > 0
        and LAUNCHED_NAME in os.environ
    )
    parent = os.getppid()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the one that ends others, too
    try:
        yield
    except Spike:  # all ranks have the same, and go back together
        raise
    except BaseException as error:  # raised again
        if launched and isinstance(error, UserError):
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                if os.getppid() != parent:
                    raise SystemExit(error.exit_code) from error
                time.sleep(0.05)
        if isinstance(launcher, _SubprocessScriptLauncher):
            others = list(launcher.procs)
            # Otherwise the launcher's observer takes their end for a failure and kills this
            # process, too.
            launcher.procs.clear()
            # Of a KeyboardInterrupt Lightning makes an exit, and has killed the others already.
            interrupted = isinstance(error.__context__, KeyboardInterrupt)
            asked = interrupted or isinstance(error, (UserError, SystemExit))
            code = None if asked else _failure(others)
            for process in others:
                process.kill()
            if code is not None:
                raise SystemExit(
                    code
                ) from error  # all that happened here is that a collective lost its partner
        raise


def hand_over_processes(before: Trainer, after: Trainer) -> None:
    """Let the launcher of a new Trainer answer for the processes that an earlier one has launched.

    Lightning launches them once; each makes a new Trainer as well.
    """
    old, new = before.strategy.launcher, after.strategy.launcher
    if isinstance(old, _SubprocessScriptLauncher) and isinstance(new, _SubprocessScriptLauncher):
        new.procs = old.procs


def _failure(processes: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """Find the exit code of a process that has failed by itself, or is about to.

    Returns None if all go on.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while processes and time.monotonic() < deadline:
        failed = [code for code in (process.poll() for process in processes) if code]
        if failed:
            return failed[0] if failed[0] > 0 else 1
        time.sleep(0.05)
    return None
