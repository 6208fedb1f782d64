"""Data record: what lineage.json says of the data that a stage read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.chat.row_source import RowSource, rows_identity
from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord


class DataRecord(TypedDict):
    """The entry `data` of a stage in lineage.json."""

    where: str | None
    """Where the data lies."""
    hash: str | None
    """Identity of the data."""
    sources: Mapping[str, Mapping[str, Any]]
    """Facts of each source by its name; prepared text and rows of a file have different ones."""
    gate: list[dict[str, Any]]
    """The `DecontaminationRecord` of each evaluation set, as plain values."""


NO_DATA: DataRecord = {"where": None, "hash": None, "sources": {}, "gate": []}
"""The record of a stage that reads no data, such as merge and export. A stage whose data is
unknown has None instead.
"""


def prepared_record(location: str, manifest: Manifest) -> DataRecord:
    """Describe prepared text: its sources and the evaluation sets that it was compared with."""
    sources = {
        name: {
            "kind": source.kind, "origin": source.origin, "licence": source.licence,
            "path": source.path,
            "documents": sum(split.documents for split in source.splits.values()),
            "tokens": source.tokens,
            "sha256": source.content_sha256,
        }
        for name, source in manifest.sources.items()
    }  # fmt: skip
    return {
        "where": location,
        "hash": manifest.hash,
        "sources": sources,
        "gate": [dataclasses.asdict(record) for record in manifest.decontamination],
    }


def rows_record(
    location: str,
    data_hash: str,
    sources: Mapping[str, RowSource],
    decontamination: Iterable[DecontaminationRecord],
) -> DataRecord:
    """Describe rows: their sources and the evaluation sets that they were compared with."""
    identity = rows_identity(sources)
    described = {
        name: {
            "kind": "rows" if source.path else "made",
            "format": identity[name]["format"],
            "path": source.path,
            "sha256": identity[name]["sha256"],
        }
        for name, source in sources.items()
    }
    return {
        "where": location,
        "hash": data_hash,
        "sources": described,
        "gate": [dataclasses.asdict(record) for record in decontamination],
    }
