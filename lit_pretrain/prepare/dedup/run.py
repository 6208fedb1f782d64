"""Run: the whole comparison in one process; the pipeline runs the same steps as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_pretrain.prepare.dedup import buckets, candidates, sketch
from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.dedup.decide import Removed, decide
from lit_pretrain.prepare.document import Document


def deduplicate(parts: Sequence[Sequence[Document]], config: DedupConfig, work: Path) -> Removed:
    """Finds what to remove.

    Args:
        parts: The corpus in its order.
        config: What is compared.
        work: An empty directory.
    """
    sketches = [work / f"sketch-{number}.npz" for number in range(len(parts))]
    begins = [sum(len(part) for part in parts[:number]) for number in range(len(parts))]
    for part, path in zip(parts, sketches, strict=True):
        sketch.sketch(part, path, config)
    edges = {column: work / f"{column}.npz" for column in buckets.columns(config)}
    for column, path in edges.items():
        buckets.bucket(sketches, column, path, config)
    groups = candidates.group(list(edges.values()), work / "candidates.npz")
    stored = [work / f"shingles-{number}" for number in range(len(parts))]
    for part, begin, path in zip(parts, begins, stored, strict=True):
        candidates.store_shingles(part, begin, work / "candidates.npz", path, config.shingle_words)
    found = [decide(sketches, work / "candidates.npz", number, stored, edges.get("sample"), config) for number in range(groups)]
    return Removed.join(found)
