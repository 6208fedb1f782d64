"""What a reader is: how the files of one kind of source are found, and what their records become.

A new reader is a subclass of `FileReader` that declares which files it reads, which options of a
source it takes and which packages it needs. The checks of a config, the search for input files
and the recorded versions follow from that. A reader of ours stands in a module beside this one and
gets a line in `READERS`; any other is named in the config by its class path
(`kind: my_package.MyReader`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lit_pretrain.class_path import import_class_path
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.prepare.prepare_config import COMMON_SOURCE_FIELDS, SourceConfig, check_kind
from lit_pretrain.prepare.read.file_choice import (
    choose_suffix,
    count_passed_over,
    fold_ending,
    is_shown,
)

READERS = {
    "embedded": "lit_pretrain.prepare.read.text_readers.EmbeddedReader",
    "text": "lit_pretrain.prepare.read.text_readers.TextReader",
    "html": "lit_pretrain.prepare.read.web_readers.HtmlReader",
    "jsonl": "lit_pretrain.prepare.read.text_readers.JsonlReader",
    "parquet": "lit_pretrain.prepare.read.table_readers.ParquetReader",
    "dataset": "lit_pretrain.prepare.read.table_readers.DatasetReader",
    "warc": "lit_pretrain.prepare.read.web_readers.WarcReader",
}
"""Our kinds of sources and their classes, imported only when a config uses them."""


class FileReader(ABC):
    """Turn the files of a source into records, one file at a time.

    Reading the same file twice gives the same records in the same order, in every process.

    Args:
        source: The source's config.
        policy: What to do with records that are not as they should be. `SourceReader` applies it
            to every text; a reader needs it only for what it decodes or cuts itself.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings, in either case, of those files of a directory that are read if the source has no
    `glob`.
    """
    options: ClassVar[tuple[str, ...]] = ("path", "glob", "storage_options")
    """Fields of `SourceConfig` that the reader takes, besides those that every source has."""
    required: ClassVar[tuple[str, ...]] = ("path",)
    """Those of them that must be set."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages that decide what the text is; their versions are recorded with the dataset.
    Packages that only unpack or fetch files do not belong here: they return what was stored.
    """
    install: ClassVar[str] = ""
    """What to `pip install` when a package is missing; empty: the package of that name."""

    def __init__(self, source: SourceConfig, policy: ReadPolicy) -> None:
        self.source = source
        self.policy = policy

    @abstractmethod
    def records(self, path: Path, name: str) -> Iterable[RawText | BadRecord | NoText]:
        """Read one file from its beginning to its end.

        Args:
            path: The file, on a local disk.
            name: Its name within the source; the origins of its records begin with it.

        Raises:
            DamagedFile: The rest of the file cannot be read; what came before it counts.
        """

    @classmethod
    def validate_source(cls, where: str, source: SourceConfig) -> None:
        """Check that the fields of a source go with its kind and with each other.

        Raises:
            UserError: A field is set that the reader does not take, or a required one is missing.
        """
        check_kind(where, source, cls.options, cls.required, common=COMMON_SOURCE_FIELDS)

    @classmethod
    def files_without_path(cls, where: str, source: SourceConfig) -> tuple[Path, list[Path]]:
        """Find the files of a source that has no `path`.

        Returns:
            The directory that names are relative to, and the files.
        """
        raise UserError(f"{where} is of kind {source.kind} and needs `path`")

    @classmethod
    def files_below(
        cls, where: str, directory: Path, source: SourceConfig
    ) -> tuple[Path, list[Path], Counter[str]]:
        """Find the files of a local directory that are to be read.

        Hidden files are not among them, unless `glob` spells their dots (`file_choice`).

        Returns:
            The directory that names are relative to, the files, and how many others lie there, by
            their ending.

        Raises:
            UserError: `glob` is not a pattern.
        """
        every = _files(directory, "**/*")
        if source.glob is None:
            chosen = choose_suffix(every, cls.suffixes)
        else:
            try:
                matching = _files(directory, fold_ending(source.glob))
            except (ValueError, NotImplementedError) as error:
                raise UserError(
                    f"{where}.glob={source.glob!r} is not a pattern below {directory}: {error}"
                ) from None
            chosen = [name for name in matching if is_shown(name, source.glob)]
        return (
            directory,
            [directory / name for name in chosen],
            count_passed_over(every, chosen),
        )

    @classmethod
    def describe_origin(cls, source: SourceConfig) -> str | None:
        """Say where the text comes from, for readers of the manifest."""
        return source.origin


def _files(directory: Path, pattern: str) -> list[str]:
    """List the files below a directory that match a pattern, by their names below it."""
    return [
        file.relative_to(directory).as_posix() for file in directory.glob(pattern) if file.is_file()
    ]


def reader_class(kind: str, where: str = "sources") -> type[FileReader]:
    """Find the reader for a kind of source.

    Args:
        kind: One of `READERS`, or the dotted path of a subclass of `FileReader`.
        where: The source in the config, for messages.

    Raises:
        UserError: There is none, or what the path names is no reader.
    """
    if kind not in READERS and "." not in kind:
        raise UserError(
            f"{where}.kind={kind!r} is unknown.{did_you_mean(kind, READERS)} Kinds:"
            f" {', '.join(READERS)}; or the dotted path of a reader class of your own."
        )
    found = import_class_path(READERS.get(kind, kind), f"{where}.kind")
    if not isinstance(found, type) or not issubclass(found, FileReader):
        raise UserError(
            f"{where}.kind: {kind} is no reader; derive it from"
            " lit_pretrain.prepare.read.FileReader"
        )
    return found


EXCERPT = 300
"""Characters of a bad record that are kept to look at."""


@dataclass(frozen=True)
class ReadPolicy:
    """What to do with records that are not as they should be."""

    errors: Literal["replace", "skip"] = "skip"
    """Text that is not UTF-8: replace the bytes by U+FFFD, or reject the record."""
    too_large: Literal["truncate", "skip"] = "skip"
    """A document above the limit: keep its beginning, or reject it."""
    max_document_bytes: int = 50_000_000
    """The limit, in UTF-8 bytes; it also bounds the memory."""


@dataclass(frozen=True)
class RawText:
    """The text of a record as the file holds it, before the policies."""

    origin: str
    """Name of the file, and the record's number where it holds several: `a.jsonl:17`."""
    content: str | bytes
    fields: Mapping[str, str] = field(default_factory=dict)
    """What else the record says about the document, by our names (`TEXT_FIELDS`)."""
    replaced: bool = False
    """Whether the reader replaced bytes that are not UTF-8."""


@dataclass(frozen=True)
class NoText:
    """A record that rightly has no text, such as an image in a crawl; it is only counted."""

    reason: str


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used; the fields are what the reject file shows."""

    origin: str
    """As a document's origin; the name of the file alone if all of it, or its rest, is bad."""
    reason: str
    """not_json, missing_field, wrong_type, duplicate_id, undecodable, too_large, unparsable or
    damaged_file.
    """
    detail: str
    """What was found."""
    excerpt: str = ""
    """The record's beginning."""
    unread_bytes: int = 0
    """Bytes of the file, as stored, that nothing was read from."""

    @staticmethod
    def of(
        origin: str, reason: str, detail: str, content: str | bytes = "", unread_bytes: int = 0
    ) -> BadRecord:
        """Keep the beginning of detail and content, in characters that can be written."""
        text = (
            content[: 4 * EXCERPT].decode(errors="replace")
            if isinstance(content, bytes)
            else content[:EXCERPT]
        )
        return BadRecord(
            origin, reason, _writable(detail)[:EXCERPT], _writable(text)[:EXCERPT], unread_bytes
        )


class DamagedFile(Exception):
    """The rest of a file cannot be read.

    Args:
        cause: What was found.
        unread_bytes: Bytes of the file, as stored, that nothing was read from.
    """

    def __init__(self, cause: str, unread_bytes: int) -> None:
        super().__init__(cause)
        # How much a cut file lacks cannot be known, but it is more than nothing.
        self.unread_bytes = max(1, unread_bytes)


class UnusableRecord(Exception):
    """The fields of a record are not what the source's config says.

    Args:
        reason: missing_field or wrong_type.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_ABSENT = object()


def text_and_fields(record: Mapping[str, Any], source: SourceConfig) -> tuple[str, dict[str, str]]:
    """Take the text out of a JSON object, and its other fields by our names.

    Raises:
        UnusableRecord: A field of the text is missing or holds no text. Other fields may be
            missing; their values are written as text.
    """
    parts: list[str | None] = []
    for name in source.text_fields:
        value = _lookup(record, name)
        if value is _ABSENT:
            raise UnusableRecord(
                "missing_field",
                f"no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}",
            )
        if value is not None and not isinstance(value, str):
            raise UnusableRecord(
                "wrong_type", f"the field {name!r} holds {type(value).__name__}, not text"
            )
        parts.append(value)
    others = {ours: _lookup(record, theirs) for ours, theirs in source.other_fields.items()}
    return join_texts(parts), as_text(others)


def join_texts(parts: Iterable[str | None]) -> str:
    """Join the parts that hold something, with a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """Write the fields that are present as text that UTF-8 can hold."""
    return {
        name: _writable(str(value))
        for name, value in fields.items()
        if value is not None and value is not _ABSENT
    }


def _lookup(record: Mapping[str, Any], field: str) -> Any:
    """Look a field up by its whole name, else along the dots."""
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _writable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
