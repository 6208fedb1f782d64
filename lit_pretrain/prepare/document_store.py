"""Documents on their way from a source to the shards, and the files that hold them in between.

These are Parquet files that appear whole: the contract between two stages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from lit_pretrain.files import rename_durably, scratch_path, sync


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from.

    A step that alters the text makes a new document with `dataclasses.replace`.
    """

    text: str
    """The text that is encoded; never empty, and always encodable as UTF-8."""
    origin: str
    """Where it came from, relative to the source: file, or file:row (jsonl and separator: from 1;
    tables and records of a WARC file: from 0).
    """
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further fields of the source, by our names: url, id, language, date (see
    `SourceConfig.fields`), and the title of a page.
    """

    @property
    def utf8(self) -> bytes:
        """Encode the text."""
        return self.text.encode()


_GROUP_BYTES = 8 << 20
"""Size of a row group, the text that a writer or a reader holds in memory."""


class DocumentWriter:
    """Write documents in order; the file gets its name when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        self._scratch = scratch_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pyarrow.schema(
            [
                ("text", pyarrow.large_string()),
                ("origin", pyarrow.string()),
                ("fields", pyarrow.string()),
            ]
        )
        self._writer = pyarrow.parquet.ParquetWriter(
            self._scratch, self._schema, compression="zstd", compression_level=1
        )
        self._rows: list[Document] = []
        self._size = 0

    def add(self, document: Document) -> None:
        """Append a document."""
        self._rows.append(document)
        self._size += len(document.text)
        if self._size >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        columns = [
            [document.text for document in self._rows],
            [document.origin for document in self._rows],
            [
                json.dumps(dict(document.fields), ensure_ascii=False) if document.fields else None
                for document in self._rows
            ],
        ]
        arrays = [
            pyarrow.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._size = [], 0

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self._rows:
                    self._flush()
                self._writer.close()
                sync(self._scratch)
                rename_durably(self._scratch, self._path)
        finally:
            # After a failure the buffered rows cannot be written, and nobody needs them.
            with contextlib.suppress(OSError):
                self._writer.close()
            self._scratch.unlink(missing_ok=True)


def clean_file(work: Path, number: int) -> Path:
    """Name the file with the documents of a part that passed its filters."""
    return work / "clean" / f"{number:05d}.parquet"


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file, in order."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            texts, origins, fields = (table.column(n) for n in range(3))
            for text, origin, extra in zip(texts, origins, fields, strict=True):
                more = extra.as_py()
                yield Document(text.as_py(), origin.as_py(), json.loads(more) if more else {})


def read_some(path: Path, wanted: Iterable[int]) -> dict[int, Document]:
    """Read some documents of a file by their position, and only the row groups that hold them."""
    import pyarrow.parquet

    left = sorted(set(wanted))
    found: dict[int, Document] = {}
    with pyarrow.parquet.ParquetFile(path) as file:
        begin = 0
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if here := [place for place in left if begin <= place < end]:
                table = file.read_row_group(group)
                for place in here:
                    text, origin, fields = (
                        table.column(n)[place - begin].as_py() for n in range(3)
                    )
                    found[place] = Document(text, origin, json.loads(fields) if fields else {})
            begin = end
    return found
