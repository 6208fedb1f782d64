"""Files: written so that they appear at once under their name or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def scratch_name(path: Path) -> Path:
    """Where a file that appears whole is written first: no other process has this name, on
    whatever machine.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the name to write a file or a directory to, which gets its own when the block ends
    well.

    The disk has it by then. Where the block fails, on a full disk say, nothing is left of it.

    Args:
        path: The name it gets; what is there is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_name(path)
    _remove(scratch)  # of a process that was killed and had this number
    try:
        yield scratch
        for written in [*scratch.rglob("*"), scratch]:
            sync(written)
        if scratch.is_dir():
            _remove(path)  # a directory cannot be renamed onto one that holds files
        os.replace(scratch, path)
    finally:
        _remove(scratch)  # also after a rename to another link of the same file, which does nothing


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the disk has the content of a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys and its spacing."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(files: Iterable[tuple[str, str]]) -> str:
    """sha256 over (name, sha256) of files, in their order."""
    digest = hashlib.sha256()
    for name, sha256 in files:
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()
