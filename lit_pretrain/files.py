"""Files: atomic writes that survive a power cut, content that proves itself, remote addresses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError, refusal_of_system
from lit_pretrain.plain_data import load_json

LONGEST_NAME = 255
"""Bytes of a file's name that file systems allow."""
DIGEST = "digest"
"""Key of a JSON object whose value is the sha256 of all other entries."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a scratch path for a file or folder, which takes its final name when the block ends.

    The block writes to the scratch path, which lies beside the final one. What stands at the final
    path is replaced only when the disk holds the new content; if the block fails, on a full disk
    for example, it stays as it was and the scratch is removed. A folder on the way is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_path(path)
    remove_path(scratch)  # a killed process that had the same number may have left one
    try:
        yield scratch
        for written in [*scratch.rglob("*"), scratch]:
            sync(written)
        if scratch.is_dir():
            remove_path(path)  # a folder cannot be renamed onto one that holds files
        rename_durably(scratch, path)
    finally:
        remove_path(scratch)  # a rename onto a hard link of the same file leaves it


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically, and wait until the disk holds it; text is stored as UTF-8."""
    with atomic_path(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(what: str, mend: str = "choose another place") -> Iterator[None]:
    """Refuse a place for an output that the system does not let us write to.

    Args:
        what: The option that names the place and the place, for the message.
        mend: What to do about it.

    Raises:
        UserError: The block cannot write.
    """
    try:
        yield
    except Exception as error:  # libraries in Rust and C++ have errors of their own
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif (reason := refusal_of_system(error) or "") == "":
            raise
        raise UserError(f"{what} cannot be written: {reason}; {mend}") from None


def check_output(
    place: str | os.PathLike[str], what: str, mend: str = "choose another place"
) -> None:
    """Refuse, before the work, a place that its result cannot be written to.

    Whatever can be known is looked at: the name, its folder or the nearest that there is, its
    rights, and whether the disk takes a page. Nothing is left behind.

    Args:
        place: A file, which may exist, or a folder, which may not.
        what: As for `writing`, like `mend`.

    Raises:
        UserError: It cannot be written.
    """
    path = Path(place).absolute()
    with writing(what, mend=mend):
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if path.is_dir():  # a file does not take the place of a folder
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        above = path.parent
        while not above.is_dir():
            if above.exists():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            above = above.parent
        with tempfile.TemporaryFile(dir=above) as probe:
            probe.write(bytes(4096))
            probe.flush()


def scratch_path(path: Path) -> Path:
    """Return the scratch path beside `path` that no other process uses, on whatever machine."""
    end = f".{socket.gethostname()}.{os.getpid()}.tmp"
    name = f".{path.name}{end}"
    if len(os.fsencode(name)) > LONGEST_NAME:  # a name that is allowed may leave no room for more
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{end}"
    return path.with_name(name)


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file or folder within a folder's file system, and wait until the disk knows it."""
    os.rename(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until the disk holds the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_path(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def canonical_hash(value: Any) -> str:
    """Return the sha256 of a JSON value, whatever the order of its keys and its spacing."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seal_json(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON object with a digest of its content, for `read_sealed_json`."""
    plain = json.loads(json.dumps(content))  # as a reader gets it: keys are texts, tuples are lists
    sealed = {**plain, DIGEST: canonical_hash(plain)}
    text = json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"
    # An argument that is not UTF-8 has lone surrogates, which only escapes can store.
    return text.encode("utf-8", "backslashreplace").decode()


def read_sealed_json(file: Path, *, known: Collection[str] = ()) -> dict[str, Any]:
    """Read a JSON object, and compare it with its digest if it has one.

    Args:
        file: The file.
        known: Keys that files without digest have, which older versions wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    return parse_sealed_json(text, str(file), known=known)


def parse_sealed_json(text: str, where: str, *, known: Collection[str] = ()) -> dict[str, Any]:
    """Parse the text of a JSON object, and compare it with its digest if it has one.

    Args:
        text: The JSON.
        where: Names the file in messages.
        known: Keys of an object without digest. A digest whose key is damaged is not among them.

    Raises:
        UserError: The text is damaged.
    """
    try:
        content = load_json(text)
    except ValueError as error:
        raise UserError(f"{where} is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{where} is damaged: expected a JSON object, found {type(content).__name__}"
        )
    if DIGEST not in content:
        if known and (unknown := sorted(content.keys() - set(known))):
            raise UserError(f"{where} is damaged: nobody wrote the field {unknown[0]!r}")
        return content
    expected = content.pop(DIGEST)
    if canonical_hash(content) != expected:
        raise UserError(
            f"{where} is damaged: its content does not have the digest that it was written with"
        )
    return content


def check_plain_names(names: Iterable[Any], where: str, *, folders: bool = False) -> None:
    """Refuse names in somebody's artefact that do not stay within its folder.

    Args:
        names: The names of files.
        where: What holds them, for messages.
        folders: Whether they may lie in folders below, as in `train/web/index.json`.

    Raises:
        UserError: Names the first that is absolute, leads upwards, or is no name.
    """
    for name in names:
        parts = name.split("/") if isinstance(name, str) else [""]
        plain = folders or len(parts) == 1
        if not plain or any(
            part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts
        ):
            raise UserError(
                f"{where} names {name!r}, which is not the plain name of a file in it; do not use"
                " this artefact, or get it again from where it came from"
            )


def follow_umask(path: Path) -> None:
    """Give a file the rights of any new file; libraries create some that only the owner may read.

    The umask cannot be read without changing it, so a new file tells.
    """
    probe = path.with_name(f"{scratch_path(path).name}.rights")
    probe.touch()
    try:
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file; reads it in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(files: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 over the pairs (name, sha256) of files, in the order given."""
    digest = hashlib.sha256()
    for name, sha256 in files:
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()


def is_remote(location: str) -> bool:
    """Tell whether a location is an address such as s3://bucket/folder, and not a local path."""
    return "://" in location


def cache_folder(location: str, cache_dir: str | None = None) -> Path:
    """Return the folder for what is fetched from a remote location; each location has its own."""
    base = Path(cache_dir) if cache_dir else Path(tempfile.gettempdir()) / "lit_pretrain_cache"
    return base / hashlib.sha256(location.encode()).hexdigest()[:16]


def check_local(location: str | os.PathLike[str]) -> None:
    """Refuse an address where a folder on this machine is needed.

    Raises:
        UserError: It is one.
    """
    if is_remote(str(location)):
        raise UserError(
            f"{location} is an address, and a folder on this machine is needed: copy it here first"
        )
