"""FileReader: how the files of one kind of source are found and read, and which kinds there are.

A new reader is a subclass of `FileReader` that declares which files it reads, which options of a
source it takes and which packages it needs. The checks of a config, the search for input files
and the recorded versions follow from that. A reader of ours gets a line in `READERS`; any other is
named in the config by its class path (`kind: my_package.MyReader`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from lit_pretrain.class_path import import_class_path
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.prepare.prepare_config import COMMON_SOURCE_FIELDS, SourceConfig, check_kind
from lit_pretrain.prepare.read.records import BadRecord, NoText, RawText, ReadPolicy

READERS = {
    "embedded": "lit_pretrain.prepare.read.embedded.EmbeddedReader",
    "text": "lit_pretrain.prepare.read.lines.TextReader",
    "html": "lit_pretrain.prepare.read.web.HtmlReader",
    "jsonl": "lit_pretrain.prepare.read.lines.JsonlReader",
    "parquet": "lit_pretrain.prepare.read.tables.ParquetReader",
    "dataset": "lit_pretrain.prepare.read.tables.DatasetReader",
    "warc": "lit_pretrain.prepare.read.web.WarcReader",
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
    """Ends of the names of those files of a directory that are read if the source has no `glob`."""
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
    ) -> tuple[Path, list[Path]]:
        """Find the files of a local directory that are to be read.

        Returns:
            The directory that names are relative to, and the files.

        Raises:
            UserError: `glob` is not a pattern.
        """
        try:
            found = [file for file in directory.glob(source.glob or "**/*") if file.is_file()]
        except (ValueError, NotImplementedError) as error:
            raise UserError(
                f"{where}.glob={source.glob!r} is not a pattern below {directory}: {error}"
            ) from None
        if source.glob is None:
            found = [file for file in found if file.name.endswith(cls.suffixes)]
        return directory, found

    @classmethod
    def describe_origin(cls, source: SourceConfig) -> str | None:
        """Say where the text comes from, for readers of the manifest."""
        return source.origin


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
            f" {FileReader.__module__}.{FileReader.__name__}"
        )
    return found
