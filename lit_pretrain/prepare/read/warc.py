"""WARC: pages of a crawl whose main text is extracted, and the text records of WET files.

ISO 28500:2017. Records that hold neither, such as requests, are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.read.html import extracted
from lit_pretrain.prepare.read.page import MAX_BYTES
from lit_pretrain.prepare.read.records import BadRecord, Damaged, Nothing, Raw, ReadPolicy
from lit_pretrain.prepare.read.unpack import unpacked, unread
from lit_pretrain.prepare.source import SourceConfig

_PAGES = frozenset({"text/html", "application/xhtml+xml"})
_FIELDS = {
    "url": "WARC-Target-URI",
    "id": "WARC-Record-ID",
    "date": "WARC-Date",
    "language": "WARC-Identified-Content-Language",
}


def records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw | BadRecord | Nothing]:
    """Holds one record. Origins count all records of the file, from 0."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with unpacked(path) as file:
        archive = ArchiveIterator(_Short(file))  # of unpacked bytes: warcio's own unpacking ends without a word where a member is damaged
        number = -1
        try:
            for number, record in enumerate(archive):
                if record.rec_headers.get_header("Content-Length") is None:
                    raise Damaged(f"record {number} has no Content-Length", unread(file, path))
                found = _record(record, f"{name}:{number}", policy)
                while record.raw_stream.read(1 << 16):
                    pass
                # Of a cut file the last record lacks something.
                if getattr(record.raw_stream, "limit", 0) > 0:
                    raise Damaged(f"the file ends within record {number}", 0)
                if found is not None:
                    yield found
        except ArchiveLoadFailed as error:
            raise Damaged(f"no WARC record after record {number}: {str(error).strip().splitlines()[0]}", unread(file, path)) from None
        if number < 0:
            raise Damaged("the file is empty", 0)


class _Short:
    """Reads what is there, so that nothing that came before a damage is lost."""

    def __init__(self, file: BufferedReader) -> None:
        self.read = file.read1


def _record(record: Any, origin: str, policy: ReadPolicy) -> Raw | BadRecord | Nothing | None:
    """A record by its type; None where it is no answer of a server."""
    fields = {ours: value for ours, theirs in _FIELDS.items() if (value := record.rec_headers.get_header(theirs))}
    if record.rec_type == "conversion":
        return Raw(origin, record.content_stream().read(policy.max_document_bytes + 4), fields)
    if record.rec_type not in ("response", "resource"):
        return None
    headers = record.http_headers
    declared = (headers or record.rec_headers).get_header("Content-Type") or ""
    kind, _, parameters = declared.partition(";")
    if kind.strip().lower() not in _PAGES or (headers is not None and headers.get_statuscode() != "200"):
        return Nothing("not_a_page")
    try:
        page = record.content_stream().read(MAX_BYTES + 1)  # of the transfer's and the content's encoding
    except Damaged:
        raise
    except Exception as error:  # a server's encoding that it does not keep to
        return BadRecord.of(origin, "unparsable", f"{type(error).__name__}: {error}")
    return extracted(origin, page, _charset(parameters), fields)


def _charset(parameters: str) -> str | None:
    """Of a content type."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'") or None
    return None
