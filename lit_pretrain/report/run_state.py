"""Run state: state.json says whether a run goes on, or how its last attempt ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

from lit_pretrain.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    UserError,
    message_of,
)
from lit_pretrain.files import write_file

STATE = "state.json"
RunState = Literal["not started", "running", "stopped", "failed", "finished"]
"""`stopped` runs were asked to stop, by a signal, Ctrl-C or a time limit."""


class AttemptRecord(TypedDict):
    """Hold the content of state.json."""

    state: RunState
    """`running` until the attempt ends; one that is killed never writes another."""
    reason: str | None
    """First line of the error that ended it."""
    host: str
    process: int
    """The run's lock would say as well whether the process goes on, but who lists runs would have
    to take the lock to learn it, and for that moment keep the run from being started."""
    born: str | None
    """When the process was started, in the kernel's own count: numbers of processes recur."""


@contextlib.contextmanager
def recorded_attempt(run: Path) -> Iterator[None]:
    """Record in a run's folder that an attempt goes on, and how it ends.

    Args:
        run: The folder.
    """
    _write(run, "running", None)
    try:
        yield
    except BaseException as error:  # however it ends, SystemExit and Ctrl-C included
        interrupted = (isinstance(error, SystemExit) and error.__context__) or error  # by Lightning
        code = (
            error.exit_code
            if isinstance(error, UserError)
            else error.code
            if isinstance(error, SystemExit)
            else None
        )
        asked = isinstance(interrupted, KeyboardInterrupt) or code in (
            PREEMPTED_EXIT_CODE,
            INTERRUPTED_EXIT_CODE,
        )
        text = message_of(error) if isinstance(error, UserError) else str(error)
        reason = (text.strip() or type(error).__name__).splitlines()[0]
        # On a full disk the record stays as it is: the run's own error matters more, and a process
        # that is gone tells as much.
        with contextlib.suppress(OSError):
            _write(run, "stopped" if asked else "failed", reason)
        raise
    _write(run, "finished", None)


def record_failure(run: Path, reason: str) -> None:
    """Record that this attempt has failed, before its process ends without an exception."""
    with contextlib.suppress(OSError):  # as in `recorded_attempt`
        _write(run, "failed", reason)


def _write(run: Path, state: RunState, reason: str | None) -> None:
    process = os.getpid()
    record: AttemptRecord = {
        "state": state,
        "reason": reason,
        "host": socket.gethostname(),
        "process": process,
        "born": _born(process),
    }
    write_file(run / STATE, json.dumps(record, indent=1) + "\n")


def read_attempt(run: Path) -> tuple[RunState, str | None] | None:
    """Read how the last attempt of a run goes or went, and why it ended; None without a record.

    An attempt whose process is gone has failed. Of one on another machine this cannot be seen: it
    counts as running.

    Raises:
        UserError: The record is damaged.
    """
    file = run / STATE
    if not file.is_file():
        return None
    try:
        record: AttemptRecord = json.loads(file.read_text(encoding="utf-8"))
        state, reason, host = record["state"], record["reason"], record["host"]
        process, born = int(record["process"]), record["born"]
        if state not in ("running", "stopped", "failed", "finished"):
            raise ValueError(f"state {state!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    if state == "running" and host == socket.gethostname() and not _alive(process, born):
        return "failed", "its process is gone without a word, as after a kill or a power cut"
    return state, reason


def _alive(process: int, born: str | None) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the latter of a damaged number
        return False
    except PermissionError:  # it is somebody else's
        pass
    return _born(process) == born


def _born(process: int) -> str | None:
    """Read when a process was started; None of a zombie, and where no kernel says it (macOS)."""
    try:
        # The name before them may hold blanks, and ends with the last parenthesis.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
