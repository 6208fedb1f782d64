"""The config of one source: where its text lies and how it is read."""

from dataclasses import dataclass
from typing import Literal, Optional

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.checks import check_kind
from lit_pretrain.prepare.filters.spec import FilterEntry


@dataclass(kw_only=True)
class SourceConfig:
    """Where one source comes from. Documents of a source keep their order: files by name, rows as they stand."""

    kind: Literal["embedded", "text", "jsonl", "parquet"]
    """embedded: the Python standard library, needs no path. text: plain files. jsonl: one JSON object a line. parquet: tables.
    Files ending in .gz, .zst or .bz2 are unpacked as they are read (text and jsonl)."""
    path: Optional[str] = None
    """A file, or a directory that is searched with `glob`."""
    glob: Optional[str] = None
    """Which files of the directory, e.g. "**/*.md". Default: those ending in .txt, .jsonl (packed or not) or .parquet, by kind."""
    part: Optional[Literal["code", "prose", "tests"]] = None
    """Embedded only. code: modules. prose: their docstrings and the language reference. tests: the test packages."""
    text_field: str = "text"
    """Jsonl and parquet only: the field or column that holds the text."""
    separator: Optional[str] = None
    """Text only: what separates documents within a file (e.g. "\\n\\n"). Default: each file is one document."""
    filters: Optional[list[FilterEntry]] = None
    """Filters of this source alone, in place of those of all; [] for none."""
    licence: Optional[str] = None
    """Goes into the manifest. SPDX names are best."""
    origin: Optional[str] = None
    """Goes into the manifest: where the text came from, for a reader."""

    def validate(self, name: str) -> None:
        """Checks what the types cannot say.

        Args:
            name: The source's, a directory's name and part of metric names.

        Raises:
            UserError: A field does not go with the kind, or is missing; or the name cannot be used.
        """
        _check_name(name)
        check_kind(f"sources.{name}", self, _SOURCE_FIELDS[self.kind], _NEEDED[self.kind], common=("kind", "filters", "licence", "origin"))
        if self.separator == "":
            raise UserError(f"sources.{name}.separator is empty; give the text between documents, or leave it out")


_SOURCE_FIELDS: dict[str, tuple[str, ...]] = {
    "embedded": ("part",),
    "text": ("path", "glob", "separator"),
    "jsonl": ("path", "glob", "text_field"),
    "parquet": ("path", "glob", "text_field"),
}
_NEEDED: dict[str, tuple[str, ...]] = {"embedded": ("part",), "text": ("path",), "jsonl": ("path",), "parquet": ("path",)}


def _check_name(name: str) -> None:
    """A source's name is a directory's name and part of metric names."""
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in name) or name.startswith("."):
        raise UserError(f"sources: the name {name!r} must consist of ASCII letters, digits, '_', '-' and '.', and not start with '.'")
