"""The directories of a preparation: a dataset appears whole, and finished tasks outlive a fault."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.corpus import manifest
from lit_pretrain.errors import UserError
from lit_pretrain.files import rename_durably, sync, write_file
from lit_pretrain.prepare.engine.cluster import cancel_left
from lit_pretrain.prepare.engine.task_stage import STATE, read_state
from lit_pretrain.prepare.progress_table import say

DATASET = "dataset"
"""Directory below the working directory that becomes `out`."""


def partial(out: Path) -> Path:
    """Name the directory that a dataset grows in: beside `out`, so that one rename finishes it."""
    return out.parent / f".{out.name}.partial"


def check_free(out: Path) -> None:
    """Refuse a place that holds something else.

    Raises:
        UserError: It is a file, or a directory with content.
    """
    if out.is_dir():
        if found := sorted(child.name for child in out.iterdir()):
            raise UserError(
                f"out={out} exists and is not a prepared dataset (no {manifest.MANIFEST_FILENAME};"
                f" it holds {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}). Choose"
                " another `out`, or remove it."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(
            f"out={out} exists and is not a directory. Choose another `out`, or remove it."
        )


@contextlib.contextmanager
def workspace(out: Path, state: str) -> Iterator[Path]:
    """Yield a directory to work in, and turn its `dataset` into `out` when the block succeeds.

    The state names the directory and lies in it: a task of another config that a cluster runs late
    finds neither its directory nor its state, and cannot write into this one. Files that a run with
    the same state left after a fault are kept; those of other states are removed. A lock, which
    ends with its process, keeps two runs from sharing the directory.

    Args:
        out: The dataset's directory.
        state: Hash of config, input and versions: two runs with the same one can go on with each
            other's files.

    Raises:
        UserError: The place cannot be written, the disk is full, or another process works there.
    """
    root = partial(out)
    work = root / state[:16]
    try:
        lock = _lock_directory(root, out)
        for child in root.iterdir():
            if child != work or read_state(work) != state:
                _remove(child)
        if not work.exists():
            work.mkdir()
            write_file(work / STATE, state)
        else:
            cancel_left(work)
            if _worth_keeping(work):
                say(f"going on with what an earlier run left in {work}")
    except OSError as error:
        raise UserError(
            f"out={out} cannot be written: {error.strerror} ({error.filename or root}). Choose"
            " another `out`, or mend its permissions."
        ) from None
    finished = False
    try:
        yield work
        sync(work / DATASET)
        out.parent.mkdir(parents=True, exist_ok=True)
        rename_durably(work / DATASET, out)  # replaces an empty directory
        finished = True
    except OSError as error:
        raise UserError(
            f"cannot write the dataset below {work}: {error.strerror or error}. Free some space and"
            " run again: finished tasks are kept; or choose another `out`."
        ) from error
    finally:
        if root.exists() and _same(root, lock) and (finished or not _worth_keeping(work)):
            shutil.rmtree(root, ignore_errors=True)
        os.close(lock)


def clear(out: Path) -> None:
    """Remove what a run that was killed after its last rename left beside a finished dataset.

    Nothing is removed while another run works there.
    """
    root = partial(out)
    if not root.is_dir():
        return
    lock = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for child in root.iterdir():
            _remove(child)
        root.rmdir()
    except BlockingIOError:
        pass
    except OSError as error:
        say(f"{root}, which a killed run left, cannot be removed: {error.strerror}")
    finally:
        os.close(lock)


def _worth_keeping(work: Path) -> bool:
    """Check whether a task has finished here, or a cluster has left its logs."""
    return any(work.glob("*/*.json")) or any(work.glob("*/logs"))


def _lock_directory(root: Path, out: Path) -> int:
    """Create and lock the directory, and return the descriptor of the lock."""
    while True:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"another `prepare` is writing {out} right now; wait for it, or choose another"
                " `out`"
            ) from None
        if root.exists() and _same(root, lock):
            return lock
        os.close(lock)  # the other run finished between the two calls


def _remove(path: Path) -> None:
    """Remove what an earlier run left, its jobs first."""
    if path.is_dir() and not path.is_symlink():
        cancel_left(path)
        shutil.rmtree(path)
    else:
        path.unlink()


def _same(path: Path, descriptor: int) -> bool:
    """Check whether a path still names the directory that was opened."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
