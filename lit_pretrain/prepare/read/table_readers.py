"""Tables: Parquet files, and the Arrow files of a saved Hugging Face dataset; a row is a document.

Datasets are read without the package `datasets`, unless they have to be fetched from the hub.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.reader import (
    BadRecord,
    DamagedFile,
    FileReader,
    RawText,
    ReadPolicy,
    as_text,
    join_texts,
)
from lit_pretrain.prepare.remote_input import hub_files

_BATCH_ROWS = 256
"""Rows made into Python objects at a time: they need the memory of a few documents."""
_COLUMN_BUFFER = 1 << 20
"""Bytes of a Parquet column read ahead; without it pyarrow holds a whole row group's column."""


class ParquetReader(FileReader):
    """Read Parquet files. Holds a few hundred rows and a page of each column."""

    suffixes: ClassVar = (".parquet",)
    options: ClassVar = (*FileReader.options, "fields")

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord]:
        """See `FileReader`."""
        import pyarrow
        import pyarrow.parquet

        size, group = path.stat().st_size, 0
        group_bytes = [size]
        try:
            with (
                pyarrow.OSFile(os.fsencode(path)) as opened,  # a name need not be UTF-8
                pyarrow.parquet.ParquetFile(opened, buffer_size=_COLUMN_BUFFER) as file,
            ):
                columns = _Columns(file.schema_arrow, self.source)
                if columns.problem is not None:
                    yield BadRecord.of(name, *columns.problem, unread_bytes=size)
                    return
                metadata, row = file.metadata, 0
                # The size of each as stored stands with its columns, but where those are damaged,
                # to ask for one ends the process.
                unpacked = [
                    metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)
                ]
                group_bytes = [size * each // max(1, sum(unpacked)) for each in unpacked]
                for group in range(len(group_bytes)):
                    for batch in file.iter_batches(
                        batch_size=_BATCH_ROWS, row_groups=[group], columns=columns.names
                    ):
                        yield from columns.rows(batch, name, row, self.policy)
                        row += batch.num_rows
        except (PermissionError, FileNotFoundError):
            raise
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DamagedFile(
                f"{_first_line(error)} (row group {group})", sum(group_bytes[group:])
            ) from None


class DatasetReader(FileReader):
    """Read a Hugging Face dataset that was saved to disk, or fetch it from the hub.

    Holds a few hundred rows; a file is mapped, so its pages belong to the operating system.
    """

    suffixes: ClassVar = (".arrow",)
    options: ClassVar = (*FileReader.options, "fields", "hub", "subset", "split", "revision")
    required: ClassVar = ()

    @classmethod
    def validate_source(cls, where: str, source: SourceConfig) -> None:
        """Refuse also fields that go with the hub alone, or with a disk alone."""
        super().validate_source(where, source)
        if (source.path is None) == (source.hub is None):
            raise UserError(
                f"{where} is of kind dataset and needs either `path` (saved to disk) or `hub` (a"
                " name on the Hugging Face hub)"
            )
        if source.hub is not None and source.split is None:
            raise UserError(f"{where}.hub={source.hub!r} needs `split`, e.g. train")
        if source.hub is not None and "[" in str(source.split):
            raise UserError(
                f"{where}.split={source.split!r} is a slice; files are read whole, so name the"
                " split alone"
            )
        for name, value in (("subset", source.subset), ("revision", source.revision)):
            if source.hub is None and value is not None:
                raise UserError(
                    f"{where}.{name} has no meaning for a dataset on disk; it goes with `hub`"
                )

    @classmethod
    def files_without_path(cls, where: str, source: SourceConfig) -> tuple[Path, list[Path]]:
        """Download the dataset to the cache of `datasets`, and find its files there."""
        assert source.hub is not None
        assert source.split is not None
        files = hub_files(
            where,
            source.hub,
            subset=source.subset,
            split=source.split,
            revision=source.revision,
        )
        return files[0].parent, files

    @classmethod
    def files_below(
        cls, where: str, directory: Path, source: SourceConfig
    ) -> tuple[Path, list[Path], Counter[str]]:
        """Find the files that the state of `save_to_disk` names: a cache may lie beside them."""
        if source.glob is not None:
            return super().files_below(where, directory, source)
        split, splits = source.split, directory / "dataset_dict.json"
        if splits.is_file():
            names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
            if split not in names:
                raise UserError(
                    f"{where}: {directory} has the splits {', '.join(names)}; set `split` to one of"
                    f" them (it is {split!r})"
                )
            directory /= str(split)
        elif split is not None:
            raise UserError(
                f"{where}.split={split!r}, but {directory} was saved without splits; leave it out"
            )
        try:
            state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
            named = [directory / entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{where}.path: {directory} is not a dataset as `save_to_disk` writes it ({error});"
                " for a folder of tables use kind parquet"
            ) from None
        return directory, named, Counter()

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord]:
        """See `FileReader`."""
        import pyarrow

        size = path.stat().st_size
        if not size:
            raise DamagedFile("the file is empty", 0)
        with pyarrow.memory_map(os.fsencode(path)) as file:
            try:
                stream, row = pyarrow.ipc.open_stream(file), 0
                columns = _Columns(stream.schema, self.source)
                if columns.problem is not None:
                    yield BadRecord.of(name, *columns.problem, unread_bytes=size)
                    return
                for batch in stream:
                    for start in range(0, batch.num_rows, _BATCH_ROWS):
                        part = batch.slice(start, _BATCH_ROWS)
                        yield from columns.rows(part, name, row, self.policy)
                        row += part.num_rows
                if not _has_end_mark(path):
                    raise DamagedFile("the file ends too early", 0)
            except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
                raise DamagedFile(_first_line(error), size - file.tell()) from None


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().splitlines()[0]


def _has_end_mark(path: Path) -> bool:
    """Check for the stream's end mark: pyarrow takes a file cut between two batches for whole."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        return file.read() == b"\xff\xff\xff\xff\0\0\0\0"


class _Columns:
    """The columns of a table that a source's `fields` name, as paths into nested columns.

    Args:
        schema: A pyarrow schema.
        source: The source whose `fields` are looked up.
    """

    def __init__(self, schema: Any, source: SourceConfig) -> None:
        self._text = [_path(schema, field) for field in source.text_fields]
        others = {ours: _path(schema, theirs) for ours, theirs in source.other_fields.items()}
        self._others = {ours: path for ours, path in others.items() if path}
        self.problem: tuple[str, str] | None = None
        """Reason and detail why no row of the file can be used."""
        for field, path in zip(source.text_fields, self._text, strict=True):
            if not path:
                self.problem = (
                    "missing_field",
                    f"no column {field!r}; it has {', '.join(map(repr, schema.names))}",
                )
            elif not _holds_text(column_type := _type_at(schema, path)):
                self.problem = ("wrong_type", f"the column {field!r} holds {column_type}, not text")

    @property
    def names(self) -> list[str]:
        """Dotted names of the columns to read from the file."""
        return list(dict.fromkeys(".".join(path) for path in (*self._text, *self._others.values())))

    def rows(
        self, batch: Any, name: str, first: int, policy: ReadPolicy
    ) -> Iterator[RawText | BadRecord]:
        """Yield the rows of a batch, of which `first` is the number of the first in its file."""
        # Enough of a text that is too large to know it: its copy would be as large again.
        longest = policy.max_document_bytes + 4
        texts = [_as_bytes(batch, path, longest).to_pylist() for path in self._text]
        others = {ours: _values(batch, path) for ours, path in self._others.items()}
        for n in range(batch.num_rows):
            origin = f"{name}:{first + n}"
            fields = as_text({ours: values[n] for ours, values in others.items()})
            if len(texts) == 1:
                yield RawText(origin, texts[0][n] or b"", fields)
            else:
                yield _join(origin, [column[n] for column in texts], fields, policy)


def _join(
    origin: str, parts: list[bytes | None], fields: dict[str, str], policy: ReadPolicy
) -> RawText | BadRecord:
    """Join several texts into one, each decoded by itself."""
    replaced, decoded = False, []
    for part in parts:
        try:
            decoded.append((part or b"").decode())
        except UnicodeDecodeError as error:
            if policy.errors == "skip":
                detail = f"byte at offset {error.start} is not UTF-8 ({error.reason})"
                return BadRecord.of(origin, "undecodable", detail, part or b"")
            decoded.append((part or b"").decode(errors="replace"))
            replaced = True
    return RawText(origin, join_texts(decoded), fields, replaced)


def _path(schema: Any, field: str) -> list[str]:
    """Find a column of that name, else along the dots; return [] if there is none."""
    import pyarrow

    if field in schema.names:
        return [field]
    path = field.split(".")
    if path[0] not in schema.names:
        return []
    column_type = schema.field(path[0]).type
    for part in path[1:]:
        if not pyarrow.types.is_struct(column_type) or column_type.get_field_index(part) < 0:
            return []
        column_type = column_type.field(part).type
    return path


def _type_at(schema: Any, path: list[str]) -> Any:
    """Return the pyarrow type at a path."""
    column_type = schema.field(path[0]).type
    for part in path[1:]:
        column_type = column_type.field(part).type
    return column_type


def _holds_text(column_type: Any) -> bool:
    """Tell whether values are strings or bytes, plain or dictionary-encoded.

    A column of nulls counts as text that is absent.
    """
    from pyarrow import types

    column_type = column_type.value_type if types.is_dictionary(column_type) else column_type
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_string_view,
        types.is_null,
    )
    return any(test(column_type) for test in tests)


def _column(batch: Any, path: list[str]) -> Any:
    """Return the values at a path, with dictionaries decoded."""
    import pyarrow
    import pyarrow.compute

    values = batch.column(path[0])
    if len(path) > 1:
        values = pyarrow.compute.struct_field(values, path[1:])
    return values.dictionary_decode() if pyarrow.types.is_dictionary(values.type) else values


def _as_bytes(batch: Any, path: list[str], longest: int | None = None) -> Any:
    """Return texts as bytes, so that a damaged string meets the policy and raises nothing.

    Args:
        batch: Rows of the table.
        path: Where the texts stand.
        longest: Most bytes of a text; the rest of it is left out.
    """
    import pyarrow
    import pyarrow.compute

    values = _column(batch, path)
    if values.type == pyarrow.null():
        values = values.cast(pyarrow.string())
    values = values.cast(pyarrow.large_binary())
    # An Arrow file has no checksums, and a wrong offset would end the process.
    values.validate(full=True)
    if longest is not None and values.nbytes > longest:
        lengths = pyarrow.compute.binary_length(values)
        if (pyarrow.compute.max(lengths).as_py() or 0) > longest:
            return pyarrow.compute.binary_slice(values, 0, longest)
    return values


def _values(batch: Any, path: list[str]) -> list[Any]:
    """Return the values of any column as Python objects, with text decoded leniently."""
    values = _column(batch, path)
    if _holds_text(values.type):
        return [
            value if value is None else value.decode(errors="replace")
            for value in _as_bytes(batch, path).to_pylist()
        ]
    return list(values.to_pylist())
