"""Arrow: the files of a saved Hugging Face dataset, whose rows are documents. They are read without the package `datasets`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.prepare.read.columns import ROWS, Columns
from lit_pretrain.prepare.read.records import BadRecord, Damaged, Raw, ReadPolicy
from lit_pretrain.prepare.source import SourceConfig


def records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw | BadRecord]:
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
                for start in range(0, batch.num_rows, ROWS):
                    part = batch.slice(start, ROWS)
                    yield from columns.rows(part, name, row, policy)
                    row += part.num_rows
            if not _ended(path):
                raise Damaged("the file ends too early", 0)
        except (OSError, pyarrow.ArrowException) as error:
            raise Damaged(str(error).strip().splitlines()[0], size - file.tell()) from None


def _ended(path: Path) -> bool:
    """Whether the stream has its end mark: a reader takes a file cut between two batches for a whole one."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        return file.read() == b"\xff\xff\xff\xff\0\0\0\0"
