"""Digests: proof that a checkpoint still is what was written.

The digest of a file is a comment of its zip archive, which every reader of zip archives passes
over, and so does torch: what follows the last field of the archive's end record (22 bytes) is

    lit_pretrain xxh3_128 <32 hexadecimal digits of all bytes before them>

The digests of a sharded folder are in its `digests.json`, which is written last. xxh3 reads 7 GiB/s
on one core, so that a check waits for the disk. Checkpoints of older versions have no digest: their
files are checked by the CRCs of the archive, and by loading it; their folders by the sizes of all
shards.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TypedDict

import xxhash

from lit_pretrain.errors import UserError
from lit_pretrain.files import check_plain_names, read_sealed_json, seal_json, write_file

DIGESTS = "digests.json"
_SIGNATURE = b"PK\x05\x06"
_END_RECORD = 22
"""Bytes of a zip archive's end record without a comment; its last two are the comment's length."""
_MARK = b"lit_pretrain xxh3_128 "
_COMMENT = len(_MARK) + 32
_BLOCK = 1 << 20
_REMEMBERED_BYTES = 64 << 20
"""Larger files are hashed once in a process, as long as their size and time stay the same."""
_sound: set[tuple[str, int, int, int]] = set()


class FileDigest(TypedDict):
    """Describe one file of a sharded checkpoint."""

    bytes: int
    xxh3_128: str


# ------------------------------------------------------------------ writing


class _HashedFile:
    """Write a zip archive from its beginning to its end, as torch does, and hash it on the way.

    Its last bytes are held back from the hash, because `seal` changes them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = xxhash.xxh3_128()
        self._end = b""

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes, and hash all but the last 22 of all that was written."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        # Tensors come in pieces of any size; none of them is copied here.
        if len(view) >= _END_RECORD:
            self._hash.update(self._end)
            self._hash.update(view[:-_END_RECORD])
            self._end = bytes(view[-_END_RECORD:])
        else:
            end = self._end + bytes(view)
            self._hash.update(end[:-_END_RECORD])
            self._end = end[-_END_RECORD:]
        return len(view)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def seal(self) -> None:
        """Append the digest as the archive's comment."""
        assert self._end[:4] + self._end[-2:] == _SIGNATURE + b"\0\0", "not a zip archive"
        length = _COMMENT.to_bytes(2, "little")
        # As it will stand in the file: the last two bytes of the record are the length of the
        # comment.
        self._hash.update(self._end[:-2] + length + _MARK)
        self._file.seek(-2, os.SEEK_END)
        self._file.write(length + _MARK + self._hash.hexdigest().encode())


def write_archive(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    """Write a zip archive with its digest, and wait until the disk holds it.

    Args:
        path: The file.
        save: Writes the archive into the file that it is called with, like `torch.save`.
    """
    with open(path, "wb") as file:
        hashed = _HashedFile(file)
        save(hashed)  # type: ignore[arg-type]  # torch needs no more of a file than this has
        hashed.seal()
        file.flush()
        os.fsync(file.fileno())
    _remember(path)


def file_digest(path: Path) -> FileDigest:
    """Hash a file and wait until the disk holds it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        return {"bytes": size, "xxh3_128": _hash(file, size)}


def write_digests(folder: Path, digests: Mapping[str, FileDigest]) -> None:
    """Finish a sharded checkpoint: record the digests of all of its files.

    Args:
        folder: The checkpoint.
        digests: The digest of every file, by its name.
    """
    write_file(folder / DIGESTS, seal_json({"format_version": 1, "files": dict(digests)}))


# ------------------------------------------------------------------ checking


def damage(path: Path) -> str | None:
    """Describe what is wrong with a checkpoint, whatever its layout; None if it is sound."""
    try:
        if path.is_dir():
            return _damage_of_folder(path)
        if not path.is_file():
            return "there is no such file"
        key = _key(path)
        found = None if key in _sound else _damage_of_archive(path)
    except OSError as error:
        return f"it cannot be read: {error}"
    if found is None:
        _remember(path)
    return found


def end_digest(path: Path) -> str | None:
    """Read the digest at the end of a checkpoint's file, unchecked; None if it has none."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _COMMENT))
        end = file.read()
    return end[-32:].decode("latin-1") if end.startswith(_MARK) else None


def _damage_of_archive(path: Path) -> str | None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return "it is empty"
        file.seek(max(0, size - _END_RECORD - _COMMENT))
        end = file.read()
        plain = end[-_END_RECORD:]
        if plain[:4] == _SIGNATURE and plain[-2:] == b"\0\0":
            return _damage_of_plain_archive(path)
        head = _SIGNATURE, _COMMENT.to_bytes(2, "little"), _MARK
        if (end[:4], end[20:22], end[22 : 22 + len(_MARK)]) != head:
            return "its end is missing or damaged"
        if _hash(file, size - 32) != end[-32:].decode("latin-1"):
            return "its content does not have the digest that it was written with"
    return None


def _damage_of_plain_archive(path: Path) -> str | None:
    """Check an archive without digest, which an older version or somebody else wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    # Damaged headers lead zipfile into errors of many kinds; each of them is a damaged file.
    except Exception as error:
        return f"its archive is damaged ({error or type(error).__name__})"
    if bad is not None:
        return f"its entry {bad} is damaged"
    from lit_pretrain.checkpoint.shards import load_archive  # needs torch

    try:
        load_archive(path, mmap=True)
    except UserError as error:
        return str(error)
    return None


def _damage_of_folder(folder: Path) -> str | None:
    index = folder / DIGESTS
    if index.is_file():
        try:
            content = read_sealed_json(index, known=("format_version", "files"))
            files: Mapping[str, FileDigest] = content["files"]
            # A name with a folder in it would have a file elsewhere checked.
            check_plain_names(files, str(index))
            expected = {
                folder / name: (int(entry["bytes"]), str(entry["xxh3_128"]))
                for name, entry in files.items()
            }
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            return f"its {DIGESTS} is damaged ({error})"
        for file, (size, digest) in expected.items():
            if not file.is_file():
                return f"its file {file.name} is missing"
            key = _key(file)
            if key in _sound:
                continue
            with file.open("rb") as opened:
                found = opened.seek(0, os.SEEK_END)
                if found != size:
                    return f"its file {file.name} has {found:,} bytes instead of {size:,}"
                if _hash(opened, size) != digest:
                    return f"its file {file.name} does not have the digest that it was written with"
            _remember(file)
    from lit_pretrain.checkpoint.shards import damage_of_shards  # needs torch

    return damage_of_shards(folder)


def _hash(file: IO[bytes], size: int) -> str:
    """Hash the first `size` bytes of a file."""
    file.seek(0)
    digest = xxhash.xxh3_128()
    left = size
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _key(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns


def _remember(path: Path) -> None:
    key = _key(path)
    if key[2] >= _REMEMBERED_BYTES:
        _sound.add(key)
