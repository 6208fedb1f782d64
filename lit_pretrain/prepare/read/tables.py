"""Arrow: the files of a saved Hugging Face dataset, whose rows are documents. They are read
without the package `datasets`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.records import (
    BadRecord,
    Damaged,
    Raw,
    ReadPolicy,
    as_text,
    join_fields,
)

# Columns: from the batches of a table to records, for Parquet and Arrow files.


BATCH_ROWS = 256
"""Rows made into Python objects at a time: they share the memory of a few documents."""


class Columns:
    """Which columns of a schema the source's fields are, as paths: a field of that name, else along
    the dots.

    Args:
        schema: A pyarrow schema.
        source: Whose `fields` are looked up.
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
            elif not _holds_text(kind := _kind(schema, path)):
                self.problem = ("wrong_type", f"the column {field!r} holds {kind}, not text")

    @property
    def names(self) -> list[str]:
        """Dotted, to be read from the file."""
        return list(dict.fromkeys(".".join(path) for path in (*self._text, *self._others.values())))

    def rows(
        self, batch: Any, name: str, first: int, policy: ReadPolicy
    ) -> Iterator[Raw | BadRecord]:
        """The rows of a batch, the first of which is `first`."""
        texts = [_as_bytes(batch, path).to_pylist() for path in self._text]
        others = {ours: _values(batch, path) for ours, path in self._others.items()}
        for n in range(batch.num_rows):
            origin = f"{name}:{first + n}"
            fields = as_text({ours: values[n] for ours, values in others.items()})
            if len(texts) == 1:
                yield Raw(origin, texts[0][n] or b"", fields)
            else:
                yield _join(origin, [column[n] for column in texts], fields, policy)


def _join(
    origin: str, parts: list[bytes | None], fields: dict[str, str], policy: ReadPolicy
) -> Raw | BadRecord:
    """Several texts as one, each decoded for itself."""
    replaced, decoded = False, []
    for part in parts:
        try:
            decoded.append((part or b"").decode())
        except UnicodeDecodeError as error:
            if policy.errors == "skip":
                return BadRecord.of(
                    origin,
                    "undecodable",
                    f"byte at offset {error.start} is not UTF-8 ({error.reason})",
                    part or b"",
                )
            decoded.append((part or b"").decode(errors="replace"))
            replaced = True
    return Raw(origin, join_fields(decoded), fields, replaced)


def _path(schema: Any, field: str) -> list[str]:
    """Names from the table's column inwards, empty where there is no such field."""
    import pyarrow

    if field in schema.names:
        return [field]
    path = field.split(".")
    if path[0] not in schema.names:
        return []
    kind = schema.field(path[0]).type
    for part in path[1:]:
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return []
        kind = kind.field(part).type
    return path


def _kind(schema: Any, path: list[str]) -> Any:
    """The type at a path."""
    kind = schema.field(path[0]).type
    for part in path[1:]:
        kind = kind.field(part).type
    return kind


def _holds_text(kind: Any) -> bool:
    """Strings or bytes, as they are or through a dictionary; a column of nulls is text that is
    not there.
    """
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_string_view,
        types.is_null,
    )
    return any(test(kind) for test in tests)


def _column(batch: Any, path: list[str]) -> Any:
    """The values at a path, without dictionaries."""
    import pyarrow
    import pyarrow.compute

    values = batch.column(path[0])
    if len(path) > 1:
        values = pyarrow.compute.struct_field(values, path[1:])
    return values.dictionary_decode() if pyarrow.types.is_dictionary(values.type) else values


def _as_bytes(batch: Any, path: list[str]) -> Any:
    """As bytes: a damaged string column must meet the policy on encoding, not an exception."""
    import pyarrow

    values = _column(batch, path)
    if values.type == pyarrow.null():
        values = values.cast(pyarrow.string())
    values = values.cast(pyarrow.large_binary())
    values.validate(
        full=True
    )  # an Arrow file has no checksums, and a wrong offset would end the process
    return values


def _values(batch: Any, path: list[str]) -> list[Any]:
    """Whatever they are."""
    values = _column(batch, path)
    if _holds_text(values.type):
        return [
            value if value is None else value.decode(errors="replace")
            for value in _as_bytes(batch, path).to_pylist()
        ]
    return list(values.to_pylist())


def arrow_records(
    path: Path, name: str, source: SourceConfig, policy: ReadPolicy
) -> Iterator[Raw | BadRecord]:
    """Holds a few hundred rows; the file is mapped, so its pages are the operating system's."""
    import pyarrow

    size = path.stat().st_size
    if not size:
        raise Damaged("the file is empty", 0)
    with pyarrow.memory_map(str(path)) as file:
        try:
            stream, row = pyarrow.ipc.open_stream(file), 0
            columns = Columns(stream.schema, source)
            if columns.problem is not None:
                yield dataclasses.replace(BadRecord.of(name, *columns.problem), unread_bytes=size)
                return
            for batch in stream:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    part = batch.slice(start, BATCH_ROWS)
                    yield from columns.rows(part, name, row, policy)
                    row += part.num_rows
            if not _ended(path):
                raise Damaged("the file ends too early", 0)
        except (OSError, pyarrow.ArrowException) as error:
            raise Damaged(str(error).strip().splitlines()[0], size - file.tell()) from None


def _ended(path: Path) -> bool:
    """Whether the stream has its end mark: a reader takes a file cut between two batches for a
    whole one.
    """
    with path.open("rb") as file:
        file.seek(-8, 2)
        return file.read() == b"\xff\xff\xff\xff\0\0\0\0"


# Parquet: a row of a table is a document.


_BUFFER = 1 << 20
"""Bytes of a column read ahead; without it pyarrow holds the column of a whole row group."""


def parquet_records(
    path: Path, name: str, source: SourceConfig, policy: ReadPolicy
) -> Iterator[Raw | BadRecord]:
    """Holds a few hundred rows and a page of each column."""
    import pyarrow
    import pyarrow.parquet

    size, group = path.stat().st_size, 0
    left = [size]  # bytes of each row group from the current one on
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER) as file:
            columns = Columns(file.schema_arrow, source)
            if columns.problem is not None:
                yield dataclasses.replace(BadRecord.of(name, *columns.problem), unread_bytes=size)
                return
            metadata, row = file.metadata, 0
            groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
            left = [
                sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups
            ]
            for group in range(len(groups)):
                for batch in file.iter_batches(
                    batch_size=BATCH_ROWS, row_groups=[group], columns=columns.names
                ):
                    yield from columns.rows(batch, name, row, policy)
                    row += batch.num_rows
    except (PermissionError, FileNotFoundError):
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise Damaged(
            f"{str(error).strip().splitlines()[0]} (row group {group})", sum(left[group:])
        ) from None
