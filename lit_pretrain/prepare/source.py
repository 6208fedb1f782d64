"""The config of one source: where its text lies and how it is read."""

from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.checks import check_kind
from lit_pretrain.prepare.filters.spec import FilterEntry

FIELDS = ("text", "url", "id", "language", "date")
"""What a source can tell about a document, by our names."""


@dataclass(kw_only=True)
class SourceConfig:
    """Where one source comes from. Documents of a source keep their order: files by name, rows as they stand."""

    kind: Literal["embedded", "text", "html", "jsonl", "parquet", "dataset", "warc"]
    """embedded: the Python standard library, needs no path. text: plain files and Markdown. html: pages, their main text is extracted.
    jsonl: one JSON object a line. parquet: tables. dataset: a Hugging Face dataset, saved to disk or on the hub. warc: WARC or WET files,
    as Common Crawl has them. Files ending in .gz, .zst or .bz2 are unpacked as they are read."""
    path: Optional[Union[str, list[str]]] = None
    """A file, or a directory that is searched with `glob`, or an s3:// address of either, or the http(s):// address of a file, or a list
    of these."""
    glob: Optional[str] = None
    """Which files of the directory, e.g. "**/*.rst". Default: by kind, those ending in .txt or .md, .html or .htm, .jsonl, .parquet,
    .arrow, .warc or .wet (packed or not)."""
    part: Optional[Literal["code", "prose", "tests"]] = None
    """Embedded only. code: modules. prose: their docstrings and the language reference. tests: the test packages."""
    fields: dict[str, Union[str, list[str]]] = field(default_factory=dict)
    """Jsonl, parquet and dataset: our name -> the field or column that holds it, for text (default "text"), url, id, language and date.
    Dots reach into nested fields (meta.url). A list for text joins several by a blank line: {text: [question, answer]}. With `id`, a record
    whose id occurred before in the same file is rejected; over files and parts, the first document that the filters kept stays."""
    separator: Optional[str] = None
    """Text only: what separates documents within a file (e.g. "\\n\\n"). Default: each file is one document."""
    hub: Optional[str] = None
    """Dataset only, instead of `path`: its name on the Hugging Face hub. Needs the package `datasets`."""
    subset: Optional[str] = None
    """Dataset on the hub only: which of its configurations."""
    split: Optional[str] = None
    """Dataset only: which of its splits; needed for the hub, and on disk where it was saved with several."""
    revision: Optional[str] = None
    """Dataset on the hub only: branch, tag or commit. A commit makes the preparation repeatable."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """For s3:// only: what boto3's client takes, e.g. endpoint_url. Not recorded in the manifest."""
    filters: Optional[list[FilterEntry]] = None
    """Filters of this source alone, in place of those of all; [] for none."""
    licence: Optional[str] = None
    """Goes into the manifest. SPDX names are best."""
    origin: Optional[str] = None
    """Goes into the manifest: where the text came from, for a reader."""

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [] if self.path is None else [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def text_fields(self) -> list[str]:
        """The fields whose values make the text."""
        names = self.fields.get("text", "text")
        return [names] if isinstance(names, str) else list(names)

    @property
    def other_fields(self) -> dict[str, str]:
        """Our name -> theirs, for what is not text."""
        return {ours: theirs for ours, theirs in self.fields.items() if ours != "text" and isinstance(theirs, str)}

    def validate(self, name: str) -> None:
        """Checks what the types cannot say.

        Args:
            name: The source's, a directory's name and part of metric names.

        Raises:
            UserError: A field does not go with the kind, or is missing; or the name cannot be used.
        """
        _check_name(name)
        where = f"sources.{name}"
        check_kind(where, self, _SOURCE_FIELDS[self.kind], _NEEDED[self.kind], common=("kind", "filters", "licence", "origin"))
        if self.separator == "":
            raise UserError(f"{where}.separator is empty; give the text between documents, or leave it out")
        if self.path is not None and not all(self.paths):
            raise UserError(f"{where}.path={self.path!r} names nothing; give a file, a directory or an address")
        if self.path == []:
            raise UserError(f"{where}.path is an empty list; name at least one file, directory or address")
        self._check_fields(where)
        if self.kind == "dataset":
            self._check_dataset(where)

    def _check_fields(self, where: str) -> None:
        """Our names are known, theirs are given."""
        for ours, theirs in self.fields.items():
            if ours not in FIELDS:
                raise UserError(f"{where}.fields.{ours} is not one of ours: {', '.join(FIELDS)} (our name comes first, theirs second)")
            if not theirs or (not isinstance(theirs, str) and not all(theirs)):
                raise UserError(f"{where}.fields.{ours}={theirs!r} is empty; name the source's field")
            if ours != "text" and not isinstance(theirs, str):
                raise UserError(f"{where}.fields.{ours}={theirs!r} is a list; only text is made of several fields")

    def _check_dataset(self, where: str) -> None:
        """On disk or on the hub."""
        if (self.path is None) == (self.hub is None):
            raise UserError(f"{where} is of kind dataset and needs either `path` (saved to disk) or `hub` (a name on the Hugging Face hub)")
        if self.hub is not None and self.split is None:
            raise UserError(f"{where}.hub={self.hub!r} needs `split`, e.g. train")
        if self.hub is not None and "[" in str(self.split):
            raise UserError(f"{where}.split={self.split!r} is a slice; files are read whole, so name the split alone")
        for label in ("subset", "revision"):
            if self.hub is None and getattr(self, label) is not None:
                raise UserError(f"{where}.{label} has no meaning for a dataset on disk; it goes with `hub`")


_FILES = ("path", "glob", "storage_options")
_SOURCE_FIELDS: dict[str, tuple[str, ...]] = {
    "embedded": ("part",),
    "text": (*_FILES, "separator"),
    "html": _FILES,
    "jsonl": (*_FILES, "fields"),
    "parquet": (*_FILES, "fields"),
    "dataset": (*_FILES, "fields", "hub", "subset", "split", "revision"),
    "warc": _FILES,
}
_NEEDED: dict[str, tuple[str, ...]] = {kind: ("path",) for kind in ("text", "html", "jsonl", "parquet", "warc")} | {
    "embedded": ("part",),
    "dataset": (),
}


def _check_name(name: str) -> None:
    """A source's name is a directory's name and part of metric names."""
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in name) or name.startswith("."):
        raise UserError(f"sources: the name {name!r} must consist of ASCII letters, digits, '_', '-' and '.', and not start with '.'")
