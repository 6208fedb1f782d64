"""The directories of a preparation: the dataset exists whole or not at all, and what was done before a fault is kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.data import manifest
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.report import say
from lit_pretrain.prepare.shard import sync, write_durably

DATASET = "dataset"
"""Below the working directory: what becomes `out`."""
_STATE = "state.json"


def partial(out: Path) -> Path:
    """Where a dataset is made: beside its final place, so that one rename finishes it."""
    return out.parent / f".{out.name}.partial"


def check_free(out: Path) -> None:
    """Refuses a place that holds something else.

    Raises:
        UserError: It is a file, or a directory with content.
    """
    if out.is_dir():
        if found := sorted(child.name for child in out.iterdir()):
            raise UserError(
                f"out={out} exists and is not a prepared dataset (no {manifest.FILENAME}; it holds {', '.join(found[:3])}"
                f"{', ...' if len(found) > 3 else ''}). Choose another `out`, or remove it."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(f"out={out} exists and is not a directory. Choose another `out`, or remove it.")


@contextlib.contextmanager
def workspace(out: Path, state: str) -> Iterator[Path]:
    """Gives the directory to work in; when the block ends well, its `dataset` becomes `out` and the rest is removed.

    What a run with the same `state` left there after a fault is still in it; anything else is removed first. A lock, which dies with
    its process, keeps two runs from sharing it.

    Args:
        out: Where the dataset goes.
        state: Text that two runs share if one may go on with the other's files: config, input, versions.

    Raises:
        UserError: The place cannot be written, the disk is full, or another process is at work there.
    """
    work = partial(out)
    try:
        lock = _take(work, out)
        if not (work / _STATE).is_file() or (work / _STATE).read_text(encoding="utf-8") != state:
            _empty(work)
            write_durably(work / _STATE, state)
        elif _worth_keeping(work):
            say(f"going on with what an earlier run left in {work}")
    except OSError as error:
        raise UserError(
            f"out={out} cannot be written: {error.strerror} ({error.filename or work}). Choose another `out`, or mend its permissions."
        ) from None
    finished = False
    try:
        yield work
        sync(work / DATASET)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(work / DATASET, out)  # replaces an empty directory
        sync(out.parent)
        finished = True
    except OSError as error:
        raise UserError(
            f"cannot write the dataset below {work}: {error.strerror or error}. Free some space and run again: finished tasks are kept; "
            "or choose another `out`."
        ) from error
    finally:
        if work.exists() and _same(work, lock) and (finished or not _worth_keeping(work)):
            shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _worth_keeping(work: Path) -> bool:
    """Whether a task has ended here, or a cluster has left its logs."""
    return any(work.glob("*/*.json")) or any(work.glob("*/logs"))


def _take(work: Path, out: Path) -> int:
    """Creates and locks the directory, and returns the descriptor of the lock."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"another `prepare` is writing {out} right now; wait for it, or choose another `out`") from None
        if work.exists() and _same(work, lock):
            return lock
        os.close(lock)  # the other run finished between the two calls


def _empty(work: Path) -> None:
    """Removes what is in a directory."""
    for child in work.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _same(path: Path, descriptor: int) -> bool:
    """Whether a path still names the directory that was opened."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
