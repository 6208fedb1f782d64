"""Gate: which evaluation sets a dataset was held against, so that a score can say whether it is clean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_pretrain.data.evaluation_set import content_sha256, read_records


@dataclass(frozen=True)
class GateRecord:
    """What the gate did about one evaluation set; an entry of the manifest."""

    name: str
    """As in the config."""
    file_sha256: str
    """Of the file as it lay on disk."""
    content_sha256: str
    """Of the records, whatever the file's name, format and order (`evaluation_set.content_sha256`)."""
    fields: tuple[str, ...]
    """The fields of a record that were looked for."""
    items: int
    """Records of the set."""
    unchecked_items: int
    """Those that are too short to be told from chance, and were not looked for."""
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
    """Of the set, in the words of the config."""
    origin: str | None = None
    """Where the set came from, in the words of the config."""

    @property
    def clean(self) -> bool:
        """Whether no checked item is left in the data: hits were removed, or there were none."""
        return self.action == "remove" or self.documents_hit == 0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> GateRecord:
        """The inverse of `dataclasses.asdict` through JSON."""
        return cls(**{**raw, "fields": tuple(raw["fields"])})


def declared(gate: Iterable[GateRecord], path: str | os.PathLike[str], separator: str = "\n") -> GateRecord | None:
    """The gate's record of an evaluation set, None when the data were never held against it.

    Args:
        gate: The records of the manifest.
        path: The file that a score is to be measured on; it is recognised by its records, not by its name.
        separator: Of a txt file, see `read_records`.

    Raises:
        UserError: The file cannot be read.
    """
    wanted = content_sha256(read_records(path, separator))
    return next((record for record in gate if record.content_sha256 == wanted), None)
