"""Document: one text on its way from a source to the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from. Steps that alter the text make a new document with `dataclasses.replace`."""

    text: str
    """What is encoded; never empty, and always encodable as UTF-8."""
    origin: str
    """Where it came from, relative to the source: file, or file:row (jsonl and separator: from 1; tables and
    records of a WARC file: from 0)."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What else the source tells about it, by our names: url, id, language, date (see `SourceConfig.fields`), and title of a page."""

    @property
    def utf8(self) -> bytes:
        """The text as bytes."""
        return self.text.encode()
