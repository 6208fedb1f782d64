"""HTML: a file is a page, whose main text is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.prepare.read.page import MAX_BYTES, main_text
from lit_pretrain.prepare.read.records import BadRecord, Nothing, Raw, ReadPolicy
from lit_pretrain.prepare.read.unpack import unpacked
from lit_pretrain.prepare.source import SourceConfig


def records(path: Path, name: str, source: SourceConfig, policy: ReadPolicy) -> Iterator[Raw | BadRecord | Nothing]:
    """Holds one page."""
    with unpacked(path) as file:
        page = file.read(MAX_BYTES + 1)
    yield extracted(name, page, None, {})


def extracted(origin: str, page: bytes, charset: str | None, fields: dict[str, str]) -> Raw | BadRecord | Nothing:
    """A page as a record, with its title among the fields."""
    if len(page) > MAX_BYTES:
        return BadRecord.of(origin, "too_large", f"the page has more than {MAX_BYTES:,} bytes", page)
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
