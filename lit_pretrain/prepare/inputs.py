"""Inputs: which files a source consists of, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.errors import UserError
from lit_pretrain.prepare import embedded
from lit_pretrain.prepare.source import SourceConfig

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffixes of files that are unpacked as they are read, and the name of their format."""
_SUFFIXES = {
    "text": tuple(f".txt{packed}" for packed in ("", *COMPRESSIONS)),
    "jsonl": tuple(f".jsonl{packed}" for packed in ("", *COMPRESSIONS)),
    "parquet": (".parquet",),
}
"""Which files of a directory are read where the source has no `glob`."""


@dataclass(frozen=True)
class InputFile:
    """One file of a source."""

    name: str
    """Relative to the source's base."""
    location: str
    """Its path."""
    bytes: int
    """On disk."""


@dataclass(frozen=True)
class Inputs:
    """The files of a source."""

    base: Path
    """What origins are relative to."""
    files: tuple[InputFile, ...]
    """In reading order."""

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(file.bytes for file in self.files)


def find(name: str, source: SourceConfig) -> Inputs:
    """Lists the files of a source, sorted by name.

    Raises:
        UserError: There are none, or the path does not exist.
    """
    if source.kind == "embedded":
        assert source.part is not None
        return _inputs(embedded.root(), embedded.files(source.part))
    assert source.path is not None
    path = Path(source.path).expanduser()
    if path.is_file():
        return _inputs(path.parent, [path])
    if not path.is_dir():
        raise UserError(f"sources.{name}.path: {path} does not exist (relative paths start at {Path.cwd()})")
    try:
        found = sorted(
            (file for file in path.glob(source.glob or "**/*") if file.is_file()), key=lambda file: file.relative_to(path).as_posix()
        )
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"sources.{name}.glob={source.glob!r} is not a pattern below {path}: {error}") from None
    if source.glob is None:
        found = [file for file in found if file.name.endswith(_SUFFIXES[source.kind])]
    if not found:
        wanted = f"matches {source.glob!r}" if source.glob else f"ends in {' or '.join(_SUFFIXES[source.kind])}"
        raise UserError(f"sources.{name}: no file below {path} {wanted}; set `glob`, or correct `path`")
    return _inputs(path, found)


def _inputs(base: Path, files: list[Path]) -> Inputs:
    """With their size."""
    found = (InputFile(file.relative_to(base).as_posix(), str(file), file.stat().st_size) for file in files)
    return Inputs(base=base, files=tuple(found))
