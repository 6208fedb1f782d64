"""Reading: the documents of a source, one at a time, in an order that does not depend on the machine."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from lit_pretrain.errors import UserError
from lit_pretrain.prepare import embedded
from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.inputs import COMPRESSIONS, Inputs
from lit_pretrain.prepare.source import SourceConfig

_BLOCK = 1 << 20
_PARQUET_ROWS = 256
"""Rows held at a time: they share the memory of a few documents."""


class Reader:
    """Iterates over the documents of a source, and counts what it leaves out or alters. One pass per reader."""

    def __init__(self, source: SourceConfig, inputs: Inputs, config: PrepareConfig) -> None:
        self._source = source
        self._inputs = inputs
        self._errors = config.errors
        self._too_large = config.too_large
        self._limit = config.max_document_bytes
        self.skipped: Counter[str] = Counter()
        """Reason -> documents left out."""
        self.changed: Counter[str] = Counter()
        """Alteration -> documents altered."""

    def __iter__(self) -> Iterator[Document]:
        if self._source.kind == "embedded":
            assert self._source.part is not None
            yield from self._documents(embedded.documents(self._source.part, [Path(file.location) for file in self._inputs.files]))
            return
        read = {"text": self._text, "jsonl": self._jsonl, "parquet": self._parquet}[self._source.kind]
        for file in self._inputs.files:
            path, name = Path(file.location), file.name
            with _reading(path):
                yield from self._documents(read(path, name))

    def _documents(self, raw: Iterable[tuple[str, str | bytes]]) -> Iterator[Document]:
        """Applies the policies on encoding, size and emptiness."""
        for origin, content in raw:
            if (document := self._document(origin, content)) is not None:
                yield document

    def _document(self, origin: str, content: str | bytes) -> Document | None:
        """One raw text as a document, None when it is left out."""
        if isinstance(content, str):
            try:
                utf8 = content.encode()
            except UnicodeEncodeError as error:  # half a surrogate pair: JSON can spell it, UTF-8 cannot
                if not self._undecodable(
                    origin, f"half of a surrogate pair, U+{ord(content[error.start]):04X}, at character {error.start}"
                ):
                    return None
                utf8 = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        else:
            utf8 = content
        if len(utf8) > self._limit:
            if not self._oversize(origin):
                return None
            utf8 = utf8[: _character_boundary(utf8, self._limit)]
            self.changed["truncated"] += 1
        try:
            text = utf8.decode()
        except UnicodeDecodeError as error:
            if not self._undecodable(origin, f"byte 0x{utf8[error.start]:02x} at offset {error.start} ({error.reason})"):
                return None
            text = utf8.decode(errors="replace")
        if not text or text.isspace():
            self.skipped["empty"] += 1
            return None
        return Document(text, origin)

    def _undecodable(self, origin: str, what: str) -> bool:
        """Whether to go on with replaced characters."""
        if self._errors == "strict":
            raise UserError(
                f"{self._inputs.base / origin} is not UTF-8: {what}. Mend it, or set `errors: replace` (U+FFFD in its place) or "
                "`errors: skip` (leave the document out)."
            )
        if self._errors == "skip":
            self.skipped["undecodable"] += 1
            return False
        self.changed["replaced"] += 1
        return True

    def _oversize(self, origin: str) -> bool:
        """Whether to go on with the beginning."""
        if self._too_large == "error":
            raise UserError(
                f"{self._inputs.base / origin} is larger than max_document_bytes={self._limit:,}. Raise the limit, set "
                "`too_large: truncate` or `too_large: skip`"
                + ("" if self._source.kind != "text" else ", or set the source's `separator`")
                + "."
            )
        if self._too_large == "skip":
            self.skipped["too_large"] += 1
            return False
        return True

    def _text(self, path: Path, name: str) -> Iterator[tuple[str, bytes]]:
        """A file as one document, or one per separator."""
        with _open(path) as file:
            if self._source.separator is None:
                yield name, file.read(self._limit + 4).removeprefix(b"\xef\xbb\xbf")
                return
            for n, piece in enumerate(_split(file, self._source.separator.encode(), self._limit), start=1):
                yield f"{name}:{n}", piece.removeprefix(b"\xef\xbb\xbf") if n == 1 else piece

    def _jsonl(self, path: Path, name: str) -> Iterator[tuple[str, str | bytes]]:
        """One document per line."""
        field = self._source.text_field
        longest = 8 * self._limit + _BLOCK  # escapes take up to six bytes, and there are other fields
        with _open(path) as file:
            number = 0
            while line := file.readline(longest):
                number += 1
                where = f"{path}:{number}"
                if len(line) == longest and not line.endswith(b"\n"):
                    if self._too_large == "error":
                        self._oversize(f"{name}:{number}")
                    self.skipped["too_large"] += 1
                    while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                        pass
                    continue
                if not line.strip():
                    continue
                if (text := self._line(line, f"{name}:{number}")) is None:
                    continue
                try:
                    record = json.loads(text)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise UserError(f"{where} is not JSON: {error}. Each line must hold one JSON object.") from None
                if not isinstance(record, dict):
                    raise UserError(f"{where} holds a JSON {type(record).__name__}; each line must hold an object with the field {field!r}")
                if field not in record:
                    raise UserError(
                        f"{where} has no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}. Set the source's `text_field`."
                    )
                value = record[field]
                if not isinstance(value, str | None):
                    raise UserError(f"{where}: the field {field!r} holds {type(value).__name__}, not text. Set the source's `text_field`.")
                yield f"{name}:{number}", value or ""

    def _line(self, line: bytes, origin: str) -> str | None:
        """A line's characters under the policy on encoding, None to leave it out."""
        try:
            return line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} at offset {error.start} of the line ({error.reason})"
            return line.decode("utf-8-sig", errors="replace") if self._undecodable(origin, what) else None

    def _parquet(self, path: Path, name: str) -> Iterator[tuple[str, bytes]]:
        """One document per row."""
        import pyarrow
        import pyarrow.parquet

        column = self._source.text_field
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise UserError(f"{path} has no column {column!r}; it has {', '.join(map(repr, names))}. Set the source's `text_field`.")
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                values = batch.column(0)
                if pyarrow.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                try:  # as bytes: a damaged string column must meet the policy on encoding, not an exception
                    values = values.cast(pyarrow.large_binary())
                except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
                    raise UserError(
                        f"{path}: the column {column!r} holds {values.type}, not text. Set the source's `text_field`."
                    ) from None
                for value in values.to_pylist():
                    yield f"{name}:{row}", value or b""
                    row += 1


def _split(file: BinaryIO, separator: bytes, limit: int) -> Iterator[bytes]:
    """Pieces between separators. Of a piece longer than `limit` only the beginning is kept, enough to know that it is too large."""
    rest, beginning = b"", None
    while block := file.read(_BLOCK):
        *whole, rest = (rest + block).split(separator)
        for piece in whole:
            yield piece if beginning is None else beginning
            beginning = None
        if len(rest) > limit + 4 + len(separator):  # its end may be half a separator, which is not part of the piece
            beginning = rest[: limit + 4] if beginning is None else beginning
            rest = rest[len(rest) - len(separator) + 1 :]
    yield rest if beginning is None else beginning


def _character_boundary(utf8: bytes, limit: int) -> int:
    """Largest length ≤ limit that cuts no character."""
    end = limit
    while end > max(0, limit - 3) and utf8[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _open(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """The bytes of a file, unpacked where its suffix says so."""
    compression = COMPRESSIONS.get(path.suffix)
    if compression is None:
        return path.open("rb")
    import pyarrow

    # pyarrow, because zstandard's own reader takes a truncated file for a complete one.
    stream: Any = pyarrow.input_stream(str(path), compression=compression)
    return contextlib.closing(cast(BinaryIO, io.BufferedReader(stream, _BLOCK)))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file in errors of the disk, of unpacking and of parquet."""
    try:
        yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except (OSError, EOFError) as error:
        kind = "is truncated or damaged" if path.suffix in (*COMPRESSIONS, ".parquet") else "cannot be read"
        raise UserError(f"{path} {kind}: {error}. Fetch it again, or remove it from the source.") from None
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise UserError(
            f"{path} is damaged or not a {path.suffix.removeprefix('.')} file: {error}. Fetch it again, or remove it from the source."
        ) from None
