"""Web: the main text of HTML pages, whether each is a file or a record of a crawl (WARC, WET)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

from lit_pretrain.prepare.read.reader import (
    BadRecord,
    DamagedFile,
    FileReader,
    NoText,
    RawText,
    ReadPolicy,
)
from lit_pretrain.prepare.read.text_readers import open_unpacked, packed_suffixes, unread_bytes

MAX_PAGE_BYTES = 20_000_000
"""Larger pages are not parsed: the tree takes some twenty times as much memory, and no article is
that long.
"""
_META_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_WINDOWS_LABELS = {
    "iso-8859-1": "cp1252",
    "latin-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
}
"""What pages mean by these labels (WHATWG Encoding Standard, names and labels)."""
_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_WARC_FIELDS = {
    "url": "WARC-Target-URI",
    "id": "WARC-Record-ID",
    "date": "WARC-Date",
    "language": "WARC-Identified-Content-Language",
}
"""Our name for a field -> the header of a WARC record that holds it."""


class HtmlReader(FileReader):
    """Read HTML files: each is a page, whose main text is a document. Holds one page."""

    suffixes: ClassVar = packed_suffixes(".html", ".htm")
    packages: ClassVar = ("lxml", "trafilatura")
    install: ClassVar = "'lit_pretrain[web]'"

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord | NoText]:
        """See `FileReader`."""
        with open_unpacked(path) as file:
            page = file.read(MAX_PAGE_BYTES + 1)
        yield read_page(name, page, None, {})


class WarcReader(FileReader):
    """Read WARC and WET files (ISO 28500:2017), as Common Crawl publishes them.

    A page is a document by its main text, and so is the text of a WET record. Other records, such
    as requests, are passed over. Holds one record. Origins count all records of the file, from 0.
    """

    suffixes: ClassVar = packed_suffixes(".warc", ".wet")
    packages: ClassVar = ("lxml", "trafilatura", "warcio")
    install: ClassVar = "'lit_pretrain[web]'"

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord | NoText]:
        """See `FileReader`."""
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed

        with open_unpacked(path) as file:
            # warcio gets unpacked bytes: its own unpacking ends silently at a damaged member.
            archive = ArchiveIterator(_AvailableBytes(file))
            number = -1
            try:
                for number, record in enumerate(_records(archive)):
                    if record.rec_headers.get_header("Content-Length") is None:
                        raise DamagedFile(
                            f"record {number} has no Content-Length", unread_bytes(file, path)
                        )
                    found = _read_record(record, f"{name}:{number}", self.policy)
                    while record.raw_stream.read(1 << 16):
                        pass
                    # If the file was cut, its last record is shorter than its header says.
                    if getattr(record.raw_stream, "limit", 0) > 0:
                        raise DamagedFile(f"the file ends within record {number}", 0)
                    if found is not None:
                        yield found
            except ArchiveLoadFailed as error:
                raise DamagedFile(
                    f"no WARC record after record {number}: {str(error).strip().splitlines()[0]}",
                    unread_bytes(file, path),
                ) from None
            if number < 0:
                raise DamagedFile("the file is empty", 0)


def _records(archive: Iterable[Any]) -> Iterator[Any]:
    """Iterate over the records of an archive, with one kind of error for all damage."""
    from warcio.exceptions import ArchiveLoadFailed

    try:
        yield from archive
    except (ArchiveLoadFailed, DamagedFile, OSError):
        raise
    # In damaged headers warcio fails as it comes: a response without WARC-Target-URI is an
    # AttributeError, for one.
    except Exception as error:
        raise ArchiveLoadFailed(f"{type(error).__name__}: {error}") from None


class _AvailableBytes:
    """Return the bytes that are available, so that nothing before a damage is lost."""

    def __init__(self, file: BufferedReader) -> None:
        self.read = file.read1


def _read_record(
    record: Any, origin: str, policy: ReadPolicy
) -> RawText | BadRecord | NoText | None:
    """Read a WARC record by its type; return None if it is neither text nor a server's answer."""
    fields = {
        ours: value
        for ours, theirs in _WARC_FIELDS.items()
        if (value := record.rec_headers.get_header(theirs))
    }
    if record.rec_type == "conversion":
        return RawText(origin, record.content_stream().read(policy.max_document_bytes + 4), fields)
    if record.rec_type not in ("response", "resource"):
        return None
    headers = record.http_headers
    declared = (headers or record.rec_headers).get_header("Content-Type") or ""
    content_type, _, parameters = declared.partition(";")
    if content_type.strip().lower() not in _PAGE_TYPES or (
        headers is not None and headers.get_statuscode() != "200"
    ):
        return NoText("not_a_page")
    try:
        # The stream undoes the transfer's and the content's encoding.
        page = record.content_stream().read(MAX_PAGE_BYTES + 1)
    except DamagedFile:
        raise
    except Exception as error:  # The bytes are not in the encoding that the server declared.
        return BadRecord.of(origin, "unparsable", f"{type(error).__name__}: {error}")
    return read_page(origin, page, _charset(parameters), fields)


def _charset(parameters: str) -> str | None:
    """Find the charset among the parameters of a content type."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'") or None
    return None


def read_page(
    origin: str, page: bytes, charset: str | None, fields: dict[str, str]
) -> RawText | BadRecord | NoText:
    """Turn a page into a record, with its title among the fields."""
    if len(page) > MAX_PAGE_BYTES:
        detail = f"the page has more than {MAX_PAGE_BYTES:,} bytes"
        return BadRecord.of(origin, "too_large", detail, page)
    if not page.strip():
        return NoText("empty")
    try:
        text, title = main_text(page, charset)
    except ImportError:
        raise
    except Exception as error:  # One strange page must not stop a run.
        return BadRecord.of(origin, "unparsable", f"{type(error).__name__}: {error}", page)
    if not text or text.isspace():
        return NoText("no_text")
    return RawText(origin, text, fields | ({"title": title} if title else {}))


def main_text(page: bytes, charset: str | None = None) -> tuple[str, str | None]:
    """Extract a page's text without menus and advertisements.

    It uses trafilatura with its defaults, which balance precision and recall.

    Args:
        page: The page as the server sent it.
        charset: The encoding that the server declared. Without one, the page's own declaration
            counts, else what the bytes look like.

    Returns:
        The text, empty where there is none, and the page's title.

    Raises:
        Exception: Any; lxml and trafilatura fail in many ways on malformed pages.
    """
    import trafilatura

    # trafilatura logs each page without text.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    tree = trafilatura.load_html(_decode(page, charset))
    if tree is None:
        return "", None
    title = " ".join((tree.findtext(".//title") or "").split())
    return trafilatura.extract(tree) or "", title or None


def _decode(page: bytes, charset: str | None) -> str | bytes:
    """Decode a page, or return its bytes for trafilatura to guess.

    UTF-8 is tried first, since pages in UTF-8 that declare Latin-1 are common and the reverse is
    not seen; then each declared encoding.
    """
    declared = [charset] if charset else []
    if found := _META_CHARSET.search(page, 0, 4096):
        declared.append(found.group(1).decode("ascii", "replace"))
    # ASCII bytes may be an encoding with escapes, such as ISO-2022-JP.
    if not page.isascii():
        declared.insert(0, "utf-8-sig")
    for label in declared:
        try:
            return page.decode(_WINDOWS_LABELS.get(label.lower(), label))
        except (LookupError, ValueError):
            continue
    return page
