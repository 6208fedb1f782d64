"""Decontamination record: what a dataset's manifest says about one evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecontaminationRecord:
    """State how the data were decontaminated against one evaluation set, and what was found.

    A score on the set is clean if every stage of the network has such a record, with `clean`.
    """

    name: str
    """Name of the set in the config."""
    file_sha256: str
    """sha256 of the file as it lay on disk."""
    content_sha256: str
    """sha256 of the records, whatever the file's name, format and order
    (`evaluation_set.content_sha256`).
    """
    fields: tuple[str, ...]
    """The fields of a record that were looked for."""
    items: int
    """Records of the set."""
    unchecked_items: int
    """Records too short to be told from chance, which were not looked for."""
    ngram: int
    """Words in a row that make a hit."""
    min_words: int
    """Shorter texts were looked for as a whole, down to this number of words."""
    action: str
    """remove or mark: what happened to documents with a hit."""
    documents_hit: int
    """Documents with a hit, over all sources."""
    items_hit: int
    """Records of the set found in at least one document."""
    licence: str | None = None
    """Licence of the set, in the words of the config."""
    origin: str | None = None
    """Where the set came from, in the words of the config."""

    @property
    def clean(self) -> bool:
        """Tell whether no checked item is left: hits were removed, or there were none."""
        return self.action == "remove" or self.documents_hit == 0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DecontaminationRecord:
        """Invert `dataclasses.asdict` through JSON."""
        return cls(**{**raw, "fields": tuple(raw["fields"])})
