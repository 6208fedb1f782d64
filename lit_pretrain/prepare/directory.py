"""The directory of a dataset: it exists whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.data import manifest
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.shard import sync


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
def whole(out: Path) -> Iterator[Path]:
    """Gives an empty directory to fill, and moves it to `out` when the block ends well.

    A failed block leaves nothing; a killed process leaves a hidden directory that the next run removes. A lock, which dies with its
    process, keeps two runs from sharing it.

    Raises:
        UserError: The place cannot be written, the disk is full, or another process is at work there.
    """
    work = partial(out)
    try:
        lock = _take(work, out)
    except OSError as error:
        raise UserError(
            f"out={out} cannot be written: {error.strerror} ({error.filename or work}). Choose another `out`, or mend its permissions."
        ) from None
    try:
        yield work
        sync(work)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(work, out)  # replaces an empty directory
        sync(out.parent)
    except OSError as error:
        raise UserError(
            f"cannot write the dataset below {work}: {error.strerror or error}. Nothing was kept; free some space or choose another `out`."
        ) from error
    finally:
        if work.exists() and _same(work, lock):
            shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _take(work: Path, out: Path) -> int:
    """Creates and locks the directory, empties it if a killed run left it, and returns the descriptor of the lock."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"another `prepare` is writing {out} right now; wait for it, or choose another `out`") from None
        if work.exists() and _same(work, lock):
            break
        os.close(lock)  # the other run finished between the two calls
    for child in work.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    return lock


def _same(path: Path, descriptor: int) -> bool:
    """Whether a path still names the directory that was opened."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
