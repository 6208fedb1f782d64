"""Data record: how prepared text and rows describe themselves in lineage.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.chat.row_source import RowSource, rows_identity
from lit_pretrain.data_lineage import DataRecord, SourceRecord
from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord


def prepared_record(location: str, manifest: Manifest) -> DataRecord:
    """Describe prepared text: its sources and the evaluation sets that it was compared with."""
    sources: dict[str, SourceRecord] = {
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
    described: dict[str, SourceRecord] = {
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
