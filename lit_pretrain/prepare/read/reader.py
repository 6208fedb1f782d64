"""Reader: the documents and bad records of some files of a source, under the policies on
encoding, size and emptiness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import xxhash

from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256
from lit_pretrain.prepare import embedded
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.inputs import InputFile
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read import lines as jsonl
from lit_pretrain.prepare.read import lines as text
from lit_pretrain.prepare.read import tables as arrow
from lit_pretrain.prepare.read import tables as parquet
from lit_pretrain.prepare.read import web as html
from lit_pretrain.prepare.read import web as warc
from lit_pretrain.prepare.read.records import (
    BadRecord,
    Damaged,
    Nothing,
    Raw,
    ReadCounts,
    ReadPolicy,
)
from lit_pretrain.prepare.remote_input import is_remote_input, local_copy

_Format = Callable[[Path, str, SourceConfig, ReadPolicy], Iterable[Raw | BadRecord | Nothing]]
_FORMATS: dict[str, _Format] = {
    "text": text.text_records,
    "html": html.html_records,
    "jsonl": jsonl.jsonl_records,
    "parquet": parquet.parquet_records,
    "dataset": arrow.arrow_records,
    "warc": warc.warc_records,
}
_NEEDS = {"html": "trafilatura", "warc": "warcio"}


class Reader:
    """Iterates over the documents and bad records of files, in their order, and counts. One pass
    per reader.

    Holds one record (a few hundred rows of a table); where `id` is mapped, also a 64-bit hash of
    each id of the current file. A damaged file gives the documents before the damage and one bad
    record, and the next file is read.

    Args:
        source: The source's config.
        files: Its files, or some of them.
        policy: What to do with records that are not as they should be.
        scratch: Directory for copies of remote files, one at a time; needed only for these.

    Raises:
        UserError: While iterating: a file cannot be opened or fetched whole, or a package is
            missing.
    """

    def __init__(
        self,
        source: SourceConfig,
        files: Sequence[InputFile],
        policy: ReadPolicy,
        scratch: Path | None = None,
    ) -> None:
        self._source = source
        self._files = files
        self._policy = policy
        self._scratch = scratch
        self.counts = ReadCounts()
        """So far."""
        self.examples: dict[str, BadRecord] = {}
        """Reason -> its first bad record."""
        self.files: list[tuple[str, str]] = []
        """Name and sha256 of every file that was begun, as stored."""

    def __iter__(self) -> Iterator[Document | BadRecord]:
        for file in self._files:
            self.counts.input_bytes += file.bytes
            yield from self._file(file)

    def _file(self, file: InputFile) -> Iterator[Document | BadRecord]:
        """All of one file."""
        assert self._scratch is not None or not is_remote_input(file.location)
        ids: set[int] | None = set() if "id" in self._source.fields else None
        options = self._source.storage_options
        with local_copy(
            file.location, file.bytes, scratch=self._scratch or Path(), storage_options=options
        ) as path:
            try:
                before = self._identify(file, path)
                for found in self._records(path, file.name):
                    self.counts.records += 1
                    if isinstance(found, Nothing):
                        self.counts.empty[found.reason] += 1
                        continue
                    result = found if isinstance(found, BadRecord) else self._document(found, ids)
                    if isinstance(result, BadRecord):
                        yield self._bad(result)
                    elif result is not None:
                        self.counts.documents += 1
                        self.counts.bytes += len(result.utf8)
                        yield result
                if _change(path) != before:
                    raise _changed(file)
            except Damaged as damage:
                self.counts.records += 1
                yield self._bad(
                    BadRecord(
                        file.name,
                        "damaged_file",
                        str(damage)[:300],
                        unread_bytes=damage.unread_bytes,
                    )
                )
            except OSError as error:
                raise UserError(
                    f"{file.location} cannot be read: {error.strerror or error}. Mend that, or"
                    " leave the file out."
                ) from None
            except ImportError as error:
                package = _NEEDS.get(self._source.kind, error.name)
                raise UserError(
                    f"a source of kind {self._source.kind} needs the package {package}: pip install"
                    " 'lit_pretrain[web]'"
                ) from None

    def _identify(self, file: InputFile, path: Path) -> tuple[int, int]:
        """Notes the hash of a file: a pass of its own, for some formats are not read from end
        to end. It costs a thousandth of cleaning.
        """
        before = _change(path)
        self.files.append((file.name, file_sha256(path)))
        if before[0] != file.bytes:
            raise _changed(file)
        return before

    def _records(self, path: Path, name: str) -> Iterable[Raw | BadRecord | Nothing]:
        """By the format."""
        if self._source.kind == "embedded":
            assert self._source.part is not None
            return (
                Raw(origin, content)
                for origin, content in embedded.documents(self._source.part, [path])
            )
        return _FORMATS[self._source.kind](path, name, self._source, self._policy)

    def _bad(self, record: BadRecord) -> BadRecord:
        """Counted."""
        self.counts.bad[record.reason] += 1
        self.counts.unread_bytes += record.unread_bytes
        self.examples.setdefault(record.reason, record)
        return record

    def _document(self, raw: Raw, ids: set[int] | None) -> Document | BadRecord | None:
        """One raw text under the policies; None where it is empty."""
        if ids is not None and (identity := raw.fields.get("id")) is not None:
            key = xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"))
            if key in ids:
                return BadRecord.of(
                    raw.origin,
                    "duplicate_id",
                    f"the id {identity!r} occurred before in this file",
                    raw.content,
                )
            ids.add(key)
        replaced, truncated = raw.replaced, False
        if isinstance(raw.content, str):
            try:
                utf8 = raw.content.encode()
            except (
                UnicodeEncodeError
            ) as error:  # half a surrogate pair: JSON can spell it, UTF-8 cannot
                if self._policy.errors == "skip":
                    half = (
                        f"half of a surrogate pair, U+{ord(raw.content[error.start]):04X}, at"
                        f" character {error.start}"
                    )
                    return BadRecord.of(raw.origin, "undecodable", half, raw.content)
                utf8, replaced = (
                    raw.content.encode("utf-16", "surrogatepass")
                    .decode("utf-16", "replace")
                    .encode(),
                    True,
                )
        else:
            utf8 = raw.content
        if len(utf8) > self._policy.max_document_bytes:
            if self._policy.too_large == "skip":
                what = f"larger than max_document_bytes={self._policy.max_document_bytes:,}"
                return BadRecord.of(raw.origin, "too_large", what, utf8)
            utf8, truncated = (
                utf8[: _character_boundary(utf8, self._policy.max_document_bytes)],
                True,
            )
        try:
            text = utf8.decode()
        except UnicodeDecodeError as error:
            if self._policy.errors == "skip":
                what = (
                    f"byte 0x{utf8[error.start]:02x} at offset {error.start} is not UTF-8"
                    f" ({error.reason})"
                )
                return BadRecord.of(raw.origin, "undecodable", what, utf8)
            text, replaced = utf8.decode(errors="replace"), True
        if not text or text.isspace():
            self.counts.empty["empty"] += 1
            return None
        self.counts.changed.update(["replaced"] * replaced + ["truncated"] * truncated)
        return Document(text, raw.origin, raw.fields)


def _change(path: Path) -> tuple[int, int]:
    """What differs when somebody has written to a file: size, and time in ns."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _changed(file: InputFile) -> UserError:
    """For a file that somebody writes to while it is read."""
    return UserError(
        f"{file.location} changed while the run was at work on it. Run again when nobody writes"
        " to it."
    )


def _character_boundary(utf8: bytes, limit: int) -> int:
    """Largest length ≤ limit that cuts no character."""
    end = limit
    while end > max(0, limit - 3) and utf8[end] & 0xC0 == 0x80:
        end -= 1
    return end
