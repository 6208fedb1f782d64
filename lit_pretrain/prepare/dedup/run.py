"""Run: the whole comparison in one process; the pipeline runs the same steps as tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from lit_pretrain.prepare.dedup import candidates, sketch
from lit_pretrain.prepare.dedup import columns as buckets
from lit_pretrain.prepare.dedup import sketch as overlap
from lit_pretrain.prepare.dedup.columns import ranges_for
from lit_pretrain.prepare.dedup.decide import Places, Removed, decide
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.document_store import Document


def deduplicate(parts: Sequence[Sequence[Document]], config: DedupConfig, work: Path) -> Removed:
    """Finds what to remove.

    Args:
        parts: The corpus in its order.
        config: What is compared.
        work: An empty directory.
    """
    begins = tuple(itertools.accumulate((len(part) for part in parts[:-1]), initial=0))
    documents = sum(map(len, parts))
    places = Places(config, work, begins, documents)
    sampled = sum(
        sketch.sketch(part, path, config)[1]
        for part, path in zip(parts, places.sketches, strict=True)
    )
    if config.exact:
        for number in range(places.ranges):
            buckets.find_copies(
                places.sketches, begins, number, places.ranges, places.copies[number]
            )
    copies = buckets.Copies(places.copies, documents)
    for band, paths in enumerate(places.bands):
        for number, path in enumerate(paths):
            buckets.find_band(places.sketches, begins, band, number, places.ranges, copies, path)
    if config.containment is not None:
        overlaps = places.overlaps(ranges_for(sampled))
        for number, path in enumerate(overlaps):
            overlap.find_overlap(places.sketches, begins, number, len(overlaps), copies, path)
        for number, path in enumerate(places.containers):
            low, high = places.slice(number)
            overlap.find_containers(
                overlaps, places.sketches, begins, low, high, config.containment.threshold, path
            )
    groups = candidates.group_candidates(
        places.copies, [*itertools.chain(*places.bands), *places.containers], places.candidates
    )
    for number, part in enumerate(parts):
        candidates.store_shingles(
            part,
            *places.span(number),
            places.candidates,
            places.shingles[number],
            config.shingle_words,
        )
    found = [
        decide(places.candidates, number, places.shingles, begins, places.edges, config)
        for number in range(groups)
    ]
    return Removed.join(found)
