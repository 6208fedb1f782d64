"""Read a source: its documents and bad records, their counts, and how many may be bad.

`SourceReader` applies the policies on encoding, size and emptiness that all formats share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256, is_remote
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.inputs import InputFile
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.reader import (
    BadRecord,
    DamagedFile,
    NoText,
    RawText,
    ReadPolicy,
    reader_class,
)
from lit_pretrain.prepare.remote_input import local_copy

_CURES = {
    "not_json": "each line must hold one JSON object",
    "missing_field": "set the source's `fields`",
    "wrong_type": "set the source's `fields`",
    "duplicate_id": "leave `id` out of the source's `fields`",
    "undecodable": "convert the files to UTF-8, or set `errors: replace`",
    "too_large": (
        "raise `max_document_bytes`, set `too_large: truncate`, or for text the source's"
        " `separator`"
    ),
    "damaged_file": "fetch the file again, or remove it",
}
"""Reason why a record is bad -> what the user can do about it."""


class SourceReader:
    """Iterate over the documents and bad records of files, in their order, and count them.

    Each reader serves one pass. It holds one record (of a table, a few hundred rows) and, if the
    source maps `id`, a 64-bit hash of each id of the current file. A damaged file yields the
    documents before the damage and one bad record; then the next file is read.

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
        self._reader = reader_class(source.kind)(source, policy)
        self.counts = ReadCounts()
        """Counts of what was read so far."""
        self.examples: dict[str, BadRecord] = {}
        """Reason -> its first bad record."""
        self.files: list[tuple[str, str]] = []
        """Name and sha256, as stored, of every file whose reading has begun."""

    def __iter__(self) -> Iterator[Document | BadRecord]:
        for file in self._files:
            self.counts.input_bytes += file.bytes
            yield from self._read_file(file)

    def _read_file(self, file: InputFile) -> Iterator[Document | BadRecord]:
        """Read one file to its end or its damage."""
        assert self._scratch is not None or not is_remote(file.location)
        ids: set[int] | None = set() if "id" in self._source.fields else None
        with local_copy(
            file.location,
            file.bytes,
            scratch=self._scratch or Path(),
            storage_options=self._source.storage_options,
        ) as path:
            try:
                before = self._hash_file(file, path)
                for found in self._reader.records(path, file.name):
                    self.counts.records += 1
                    if isinstance(found, NoText):
                        self.counts.empty[found.reason] += 1
                        continue
                    result = found if isinstance(found, BadRecord) else self._document(found, ids)
                    if isinstance(result, BadRecord):
                        yield self._count_bad(result)
                    elif result is not None:
                        self.counts.documents += 1
                        self.counts.bytes += len(result.utf8)
                        yield result
                if _size_and_time(path) != before:
                    raise _changed(file)
            except DamagedFile as damage:
                self.counts.records += 1
                yield self._count_bad(
                    BadRecord.of(
                        file.name, "damaged_file", str(damage), unread_bytes=damage.unread_bytes
                    )
                )
            except OSError as error:
                raise UserError(
                    f"{file.location} cannot be read: {error.strerror or error}. Mend that, or"
                    " leave the file out."
                ) from None
            except ImportError as error:
                package = (error.name or "").partition(".")[0]
                raise UserError(
                    f"a source of kind {self._source.kind} needs the package"
                    f" {package or '?'} ({error}): pip install {self._reader.install or package}"
                ) from None

    def _hash_file(self, file: InputFile, path: Path) -> tuple[int, int]:
        """Record the hash of a file before it is read.

        This is a pass of its own, for some formats are not read from end to end. It costs a
        thousandth of cleaning.
        """
        before = _size_and_time(path)
        self.files.append((file.name, file_sha256(path)))
        if before[0] != file.bytes:
            raise _changed(file)
        return before

    def _count_bad(self, record: BadRecord) -> BadRecord:
        """Count a bad record and keep the first example of its reason."""
        self.counts.bad[record.reason] += 1
        self.counts.unread_bytes += record.unread_bytes
        self.examples.setdefault(record.reason, record)
        return record

    def _document(self, raw: RawText, ids: set[int] | None) -> Document | BadRecord | None:
        """Apply the policies to a text; return None if it is empty."""
        if ids is not None and (identity := raw.fields.get("id")) is not None:
            key = xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"))
            if key in ids:
                detail = f"the id {identity!r} occurred before in this file"
                return BadRecord.of(raw.origin, "duplicate_id", detail, raw.content)
            ids.add(key)
        replaced, truncated = raw.replaced, False
        if isinstance(raw.content, str):
            try:
                utf8 = raw.content.encode()
            # Half a surrogate pair: JSON can spell it, UTF-8 cannot.
            except UnicodeEncodeError as error:
                if self._policy.errors == "skip":
                    detail = (
                        f"half of a surrogate pair, U+{ord(raw.content[error.start]):04X}, at"
                        f" character {error.start}"
                    )
                    return BadRecord.of(raw.origin, "undecodable", detail, raw.content)
                utf16 = raw.content.encode("utf-16", "surrogatepass")
                utf8, replaced = utf16.decode("utf-16", "replace").encode(), True
        else:
            utf8 = raw.content
        limit = self._policy.max_document_bytes
        if len(utf8) > limit:
            if self._policy.too_large == "skip":
                detail = f"larger than max_document_bytes={limit:,}"
                return BadRecord.of(raw.origin, "too_large", detail, utf8)
            utf8, truncated = utf8[: _character_boundary(utf8, limit)], True
        try:
            text = utf8.decode()
        except UnicodeDecodeError as error:
            if self._policy.errors == "skip":
                detail = (
                    f"byte 0x{utf8[error.start]:02x} at offset {error.start} is not UTF-8"
                    f" ({error.reason})"
                )
                return BadRecord.of(raw.origin, "undecodable", detail, utf8)
            text, replaced = utf8.decode(errors="replace"), True
        if not text or text.isspace():
            self.counts.empty["empty"] += 1
            return None
        self.counts.changed.update(["replaced"] * replaced + ["truncated"] * truncated)
        return Document(text, raw.origin, raw.fields)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return size and time of change (ns) of a file, which differ after somebody wrote to it."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _changed(file: InputFile) -> UserError:
    """Return the error for a file that changes while it is read."""
    return UserError(
        f"{file.location} changed while it was read. Run again when nobody writes to it."
    )


def _character_boundary(utf8: bytes, limit: int) -> int:
    """Find the largest length of at most `limit` that cuts no character."""
    end = limit
    while end > max(0, limit - 3) and utf8[end] & 0xC0 == 0x80:
        end -= 1
    return end


@dataclass
class ReadCounts:
    """What was read so far; the counts of several readers can be added."""

    input_bytes: int = 0
    """Size of the files opened, as stored."""
    records: int = 0
    """Documents, records without text and bad records."""
    documents: int = 0
    """Documents passed on."""
    bytes: int = 0
    """UTF-8 bytes of their text."""
    empty: Counter[str] = field(default_factory=Counter)
    """Reason -> records without text that are no fault: empty, no_text (a page without main text),
    not_a_page.
    """
    bad: Counter[str] = field(default_factory=Counter)
    """Reason -> bad records."""
    changed: Counter[str] = field(default_factory=Counter)
    """Change -> documents that were changed: replaced, truncated."""
    unread_bytes: int = 0
    """Bytes of damaged files that nothing was read from."""

    @property
    def removed(self) -> dict[str, int]:
        """Reason -> records left out, sorted by reason, for the funnel."""
        return dict(sorted((self.empty + self.bad).items()))

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(
            input_bytes=self.input_bytes + other.input_bytes,
            records=self.records + other.records,
            documents=self.documents + other.documents,
            bytes=self.bytes + other.bytes,
            empty=self.empty + other.empty,
            bad=self.bad + other.bad,
            changed=self.changed + other.changed,
            unread_bytes=self.unread_bytes + other.unread_bytes,
        )


def check_bad(
    name: str, counts: ReadCounts, examples: Mapping[str, BadRecord], limit: float
) -> None:
    """Refuse a source if too many of its records, or of its bytes, could not be used.

    Args:
        name: Name of the source.
        counts: Counts over all its files.
        examples: Reason -> the first bad record.
        limit: `max_bad_fraction`, a fraction of the records and, for what could not be read of
            damaged files, of the input's bytes.

    Raises:
        UserError: More than the limit is bad. The message lists the reasons with their counts, the
            first example of each, and what to do.
    """
    bad = counts.bad.total()
    too_many = bad > limit * counts.records
    too_much = counts.unread_bytes > limit * counts.input_bytes
    if not (too_many or too_much):
        return
    found = []
    if bad:
        found.append(f"{bad:,} of {counts.records:,} records ({bad / max(1, counts.records):.2%})")
    if too_much:
        found.append(f"{counts.unread_bytes:,} of {counts.input_bytes:,} input bytes")
    lines = [
        f"sources.{name}: {' and '.join(found)} could not be used, more than"
        f" max_bad_fraction={limit} allows:"
    ]
    for reason, count in sorted(counts.bad.items(), key=lambda item: (-item[1], item[0])):
        first = examples[reason]
        shown = f" | {first.excerpt[:80]!r}" if first.excerpt else ""
        lines.append(f"  {count:,} {reason}, the first in {first.origin}: {first.detail}{shown}")
    cures = [f"{reason}: {_CURES[reason]}" for reason in sorted(counts.bad) if reason in _CURES]
    lines.append(f"What to do: {'; '.join([*cures, 'or raise max_bad_fraction'])}.")
    raise UserError("\n".join(lines))
