"""What a stage records about its data: the part of lineage.json that data modules write.

`data` writes these records, `checkpoint` keeps them with every artefact, and `evaluate` judges by
them whether a score is clean. The keys and their order are the file format: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class SourceRecord(TypedDict, total=False):
    """Record one raw source. Rows have a format; prepared text has origin, licence and counts."""

    kind: str
    format: str
    origin: str | None
    licence: str | None
    path: str | None
    documents: int
    tokens: int
    sha256: str | None


class _DataFields(TypedDict):
    """Hold what every record has."""

    where: str | None
    """Path or URL; None for a stage that reads no data."""
    hash: str | None
    """Identity of the data: the hash of its manifest."""
    sources: dict[str, SourceRecord]
    gate: list[Mapping[str, Any]]
    """The evaluation sets that the data was compared with: `DecontaminationRecord` as JSON."""


class DataRecord(_DataFields, total=False):
    """Record the data of one stage."""

    skipped: str
    """Optimizer steps of the order that the stage left out, such as `1200:1210`."""


NO_DATA: DataRecord = {"where": None, "hash": None, "sources": {}, "gate": []}
"""The record of a stage that reads no data, such as merge or export. Unknown data is None instead.
"""
