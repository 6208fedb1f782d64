"""Parquet: a row of a table is a document."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.prepare.read.columns import ROWS, Columns
from lit_pretrain.prepare.read.records import BadRecord, Damaged, Raw, ReadPolicy
from lit_pretrain.prepare.source import SourceConfig

_BUFFER = 1 << 20
"""Bytes of a column read ahead; without it pyarrow holds the column of a whole row group."""


def records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw | BadRecord]:
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
            left = [sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups]
            for group in range(len(groups)):
                for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns.names):
                    yield from columns.rows(batch, name, row, policy)
                    row += batch.num_rows
    except (PermissionError, FileNotFoundError):
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise Damaged(f"{str(error).strip().splitlines()[0]} (row group {group})", sum(left[group:])) from None
