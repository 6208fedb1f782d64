"""HTML: a file is a page, whose main text is a document."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.lines import unpacked, unread
from lit_pretrain.prepare.read.records import BadRecord, Damaged, Nothing, Raw, ReadPolicy

# Page: the main text of an HTML page, without menus and advertisements.


MAX_BYTES = 20_000_000
"""Larger pages are not parsed: the tree takes some twenty times as much memory, and no article
is that long.
"""
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_WINDOWS = {
    "iso-8859-1": "cp1252",
    "latin-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
}
"""What pages mean by these labels (WHATWG Encoding Standard, names and labels)."""


def main_text(page: bytes, charset: str | None = None) -> tuple[str, str | None]:
    """Extracts with trafilatura and its defaults, which balance precision and recall.

    Args:
        page: As the server sent it.
        charset: As the server declared it; else as the page does, else as the bytes look.

    Returns:
        The text, empty where there is none, and the page's title.

    Raises:
        Exception: Of any kind; lxml and trafilatura meet pages that nobody foresaw.
    """
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it reports each page without text
    tree = trafilatura.load_html(_decoded(page, charset))
    if tree is None:
        return "", None
    title = " ".join((tree.findtext(".//title") or "").split())
    return trafilatura.extract(tree) or "", title or None


def _decoded(page: bytes, charset: str | None) -> str | bytes:
    """As UTF-8 where it is that, for pages in UTF-8 that declare Latin-1 are common and the reverse
    is not seen; else by the first declaration that is true; else the bytes, for trafilatura to
    guess.
    """
    declared = [charset] if charset else []
    if found := _META.search(page, 0, 4096):
        declared.append(found.group(1).decode("ascii", "replace"))
    if not page.isascii():  # ASCII bytes may be an encoding with escapes, such as ISO-2022-JP
        declared.insert(0, "utf-8-sig")
    for label in declared:
        try:
            return page.decode(_WINDOWS.get(label.lower(), label))
        except (LookupError, ValueError):
            continue
    return page


def html_records(
    path: Path, name: str, source: SourceConfig, policy: ReadPolicy
) -> Iterator[Raw | BadRecord | Nothing]:
    """Holds one page."""
    with unpacked(path) as file:
        page = file.read(MAX_BYTES + 1)
    yield extracted(name, page, None, {})


def extracted(
    origin: str, page: bytes, charset: str | None, fields: dict[str, str]
) -> Raw | BadRecord | Nothing:
    """A page as a record, with its title among the fields."""
    if len(page) > MAX_BYTES:
        return BadRecord.of(
            origin, "too_large", f"the page has more than {MAX_BYTES:,} bytes", page
        )
    if not page.strip():
        return Nothing("empty")
    try:
        text, title = main_text(page, charset)
    except ImportError:
        raise
    except Exception as error:  # one strange page must not stop a run
        return BadRecord.of(origin, "unparsable", f"{type(error).__name__}: {error}", page)
    if not text or text.isspace():
        return Nothing("no_text")
    return Raw(origin, text, fields | ({"title": title} if title else {}))


# WARC: pages of a crawl whose main text is extracted, and the text records of WET files.
#
# ISO 28500:2017. Records that hold neither, such as requests, are passed over.


_PAGES = frozenset({"text/html", "application/xhtml+xml"})
_FIELDS = {
    "url": "WARC-Target-URI",
    "id": "WARC-Record-ID",
    "date": "WARC-Date",
    "language": "WARC-Identified-Content-Language",
}


def warc_records(
    path: Path, name: str, source: SourceConfig, policy: ReadPolicy
) -> Iterator[Raw | BadRecord | Nothing]:
    """Holds one record. Origins count all records of the file, from 0."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with unpacked(path) as file:
        archive = ArchiveIterator(
            _Short(file)
        )  # of unpacked bytes: warcio's own unpacking ends without a word where a member is damaged
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
            raise Damaged(
                f"no WARC record after record {number}: {str(error).strip().splitlines()[0]}",
                unread(file, path),
            ) from None
        if number < 0:
            raise Damaged("the file is empty", 0)


class _Short:
    """Reads what is there, so that nothing that came before a damage is lost."""

    def __init__(self, file: BufferedReader) -> None:
        self.read = file.read1


def _record(record: Any, origin: str, policy: ReadPolicy) -> Raw | BadRecord | Nothing | None:
    """A record by its type; None where it is no answer of a server."""
    fields = {
        ours: value
        for ours, theirs in _FIELDS.items()
        if (value := record.rec_headers.get_header(theirs))
    }
    if record.rec_type == "conversion":
        return Raw(origin, record.content_stream().read(policy.max_document_bytes + 4), fields)
    if record.rec_type not in ("response", "resource"):
        return None
    headers = record.http_headers
    declared = (headers or record.rec_headers).get_header("Content-Type") or ""
    kind, _, parameters = declared.partition(";")
    if kind.strip().lower() not in _PAGES or (
        headers is not None and headers.get_statuscode() != "200"
    ):
        return Nothing("not_a_page")
    try:
        page = record.content_stream().read(
            MAX_BYTES + 1
        )  # of the transfer's and the content's encoding
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
