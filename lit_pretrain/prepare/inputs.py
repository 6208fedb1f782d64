"""Inputs: the files of every source in their order, and the parts that tasks read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import content_hash, is_remote
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.file_choice import (
    choose_suffix,
    count_passed_over,
    ending,
    is_shown,
    list_passed_over,
    matcher,
)
from lit_pretrain.prepare.read.reader import READERS, reader_class
from lit_pretrain.prepare.remote_input import RemoteFile, s3_objects, url_file


@dataclass(frozen=True)
class InputFile:
    """One file of a source.

    It can be read without the others, so that any run of files can be a task.
    """

    name: str
    """Relative to the source's base, with forward slashes; begins the origins of its documents."""
    location: str
    """Path or address."""
    bytes: int
    """Size as stored, packed."""
    version: str = ""
    """What the server says about its content (`RemoteFile`); empty for a local file."""


@dataclass(frozen=True)
class Inputs:
    """The files of a source."""

    base: str
    """Directory or address that names are relative to; empty if the paths share nothing."""
    files: tuple[InputFile, ...]
    """In reading order: sorted by name."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Files below its folders that are not read: how many, by their ending, and how many hidden
    ones.
    """

    @property
    def bytes(self) -> int:
        """Add up the sizes of the files as stored."""
        return sum(file.bytes for file in self.files)

    def remote_hash(self, sha256: Callable[[InputFile], str]) -> str | None:
        """Hash what stores and servers say about the files, so that a change shows without a fetch.

        Args:
            sha256: Hashes the content of a local file.

        Returns:
            `content_hash` of the versions of remote files and the content of local ones; None if
            all are local.
        """
        if not any(is_remote(file.location) for file in self.files):
            return None
        return content_hash(
            (file.name, file.version if is_remote(file.location) else sha256(file))
            for file in self.files
        )


def find_inputs(name: str, source: SourceConfig) -> Inputs:
    """List the files of a source, sorted by name.

    A dataset on the hub is downloaded to the cache of `datasets` for that.

    Raises:
        UserError: There are none, a path does not exist, or an address cannot be reached.
    """
    where = f"sources.{name}"
    if not source.paths:
        base, files = reader_class(source.kind, where).files_without_path(where, source)
        return _inputs(name, [(str(base), _local(files), Counter())])
    return _inputs(name, [_find(where, path, source) for path in source.paths])


_Found = tuple[str, list[RemoteFile], Counter[str]]
"""A base, the files below it that are read, and the others by their ending. The address of a local
file is its path; it has no version.
"""


def _find(where: str, path: str, source: SourceConfig) -> _Found:
    """List the files of one entry of `path`."""
    if path.startswith("s3://"):
        return _in_bucket(where, path, source)
    if path.startswith(("http://", "https://")):
        if path.endswith("/") or source.glob is not None:
            raise UserError(
                f"{where}.path: {path} is a folder of a web server, which cannot be listed; give"
                " the addresses of its files as a list"
            )
        return path.rpartition("/")[0], [url_file(path)], Counter()
    if is_remote(path):
        raise UserError(
            f"{where}.path: {path} is of a kind that is not read; use s3://, http(s):// or a local"
            " path"
        )
    return _on_disk(where, Path(path).expanduser(), source)


def _on_disk(where: str, path: Path, source: SourceConfig) -> _Found:
    """List a file, or the files of a directory."""
    if path.is_file():
        kind = _kind_of(ending(path.name))
        if source.kind == "text" and kind not in (None, "text"):
            warn(f"{where}: {path} is read as plain text; `kind: {kind}` reads what it holds")
        return str(path.parent), _local([path]), Counter()
    if not path.is_dir():
        raise UserError(
            f"{where}.path: {path} does not exist (relative paths start at {Path.cwd()})"
        )
    base, files, passed_over = reader_class(source.kind, where).files_below(where, path, source)
    _check_any(where, str(base), files, passed_over, source)
    return str(base), _local(files), passed_over


def _in_bucket(where: str, path: str, source: SourceConfig) -> _Found:
    """List an object, or the objects below a prefix."""
    base = path.rstrip("/")
    if source.split is not None:
        base += f"/{source.split}"
    listed = s3_objects(base, source.storage_options)
    if base == path and (itself := [found for found in listed if found.address == base]):
        return base.rpartition("/")[0], itself, Counter()
    below = {
        found.address[len(base) + 1 :]: found
        for found in listed
        if found.address.startswith(f"{base}/") and not found.address.endswith("/")
    }
    if source.glob is None:
        chosen = choose_suffix(below, reader_class(source.kind, where).suffixes)
    else:
        fits = matcher(source.glob).fullmatch
        chosen = [name for name in below if fits(name) and is_shown(name, source.glob)]
    passed_over = count_passed_over(below, chosen)
    _check_any(where, base, chosen, passed_over, source)
    return base, [below[name] for name in chosen], passed_over


def _check_any(
    where: str, base: str, found: list[Any], passed_over: Counter[str], source: SourceConfig
) -> None:
    """Refuse a directory without any file to read."""
    if not found:
        wanted = (
            f"matches {source.glob!r}"
            if source.glob
            else f"ends in {' or '.join(reader_class(source.kind, where).suffixes)}"
        )
        others = f" (it holds {list_passed_over(passed_over)})" if passed_over else ""
        kinds = [kind for end in passed_over if (kind := _kind_of(end)) is not None]
        mend = f"set `kind: {kinds[0]}`, which reads them" if kinds else "set `glob`"
        raise UserError(
            f"{where}: no file below {base} {wanted}{others}; {mend}, or correct `path`"
        )


def _kind_of(end: str) -> str | None:
    """Find the kind of source whose files end so."""
    kinds = (kind for kind in READERS if end in reader_class(kind, "sources").suffixes)
    return next(kinds, None)


def _local(files: Iterable[Path]) -> list[RemoteFile]:
    """Describe local files."""
    return [RemoteFile(str(file), file.stat().st_size, "") for file in files]


def _inputs(name: str, found: list[_Found]) -> Inputs:
    """Name all files relative to what their entries have in common, and sort them."""
    base = _common([entry for entry, _, _ in found])
    files: dict[str, InputFile] = {}
    for location, size, version in (file for _, entry, _ in found for file in entry):
        if location in files:
            raise UserError(
                f"sources.{name}.path: {location} is listed twice; each file must be named once"
            )
        relative = location.removeprefix(base).lstrip("/")
        # A file's name may not be UTF-8, but the origins of its documents must be: other bytes are
        # written as escapes (\xff), which keep two such names apart.
        files[location] = InputFile(
            relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
            location,
            size,
            version,
        )
    return Inputs(
        base=base,
        files=tuple(sorted(files.values(), key=lambda file: (file.name, file.location))),
        passed_over=dict(sum((counts for _, _, counts in found), Counter())),
    )


def _common(bases: list[str]) -> str:
    """Find the longest directory that holds all; empty if there is none."""
    if len(bases) == 1:
        return bases[0]
    parts: list[str] = []
    for level in zip(*(base.split("/") for base in bases), strict=False):
        if len(set(level)) > 1:
            break
        parts.append(level[0])
    common = "/".join(parts)
    return "" if common.endswith((":", ":/")) else common


@dataclass(frozen=True)
class Part:
    """Consecutive files of one source: the input of a task, and a run of chunks in the dataset."""

    source: str
    """Name of the source."""
    number: int
    """Number within the source, from 0."""
    files: tuple[InputFile, ...]
    """In reading order."""

    @property
    def bytes(self) -> int:
        """Add up the sizes of the files."""
        return sum(file.bytes for file in self.files)


def cut(inputs: Mapping[str, Inputs], part_bytes: int) -> list[Part]:
    """Cut every source into parts of about `part_bytes`.

    A file is never cut, so a larger one is a part of its own. The number of workers has no
    influence, so that it cannot change the result.
    """
    parts: list[Part] = []
    for source, found in inputs.items():
        files: list[InputFile] = []
        number = size = 0
        for file in found.files:
            if files and size + file.bytes > part_bytes:
                parts.append(Part(source, number, tuple(files)))
                number, files, size = number + 1, [], 0
            files.append(file)
            size += file.bytes
        if files:
            parts.append(Part(source, number, tuple(files)))
    return parts
