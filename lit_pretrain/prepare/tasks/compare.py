"""Compare: the stages that look at the corpus as a whole, cut into tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.dedup import buckets, candidates, decide, lines, overlap, settle, sketch
from lit_pretrain.prepare.dedup.arrays import save
from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.dedup.places import Places
from lit_pretrain.prepare.dedup.report import findings
from lit_pretrain.prepare.engine.stage import Advance
from lit_pretrain.prepare.store import read_documents
from lit_pretrain.prepare.survivors import Survivors, clean_file, lines_file, removed_file, repeated_file


@dataclass(frozen=True)
class Comparison:
    """The corpus as these tasks see it."""

    config: DedupConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""
    documents: int
    """Of the corpus."""
    sizes: tuple[int, ...]
    """UTF-8 bytes of each part."""

    @property
    def places(self) -> Places:
        """Where the steps leave their files."""
        return Places(self.config, self.work / "dedup", self.begins, self.documents)

    @property
    def copies(self) -> buckets.Copies:
        """What is known to be a copy."""
        return buckets.Copies(self.places.copies, self.documents)


@dataclass(frozen=True)
class SketchTask:
    """Sketches one part."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/sketch-<number>/."""
        corpus = self.corpus
        documents = read_documents(clean_file(corpus.work, number))
        count, sampled = sketch.sketch(documents, corpus.places.sketches[number], corpus.config)
        advance(corpus.sizes[number])
        return {"documents": count, "sampled": sampled}


@dataclass(frozen=True)
class CopiesTask:
    """Finds the exact copies in one range of hashes."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/copies-<number>/."""
        places = self.corpus.places
        count = buckets.find_copies(places.sketches, places.begins, number, places.ranges, places.copies[number])
        advance(1)
        return {"copies": count}


@dataclass(frozen=True)
class BucketTask:
    """Finds the documents that share keys of one range, of one band or of the sampled shingles: tasks count ranges within bands."""

    corpus: Comparison
    sampled_ranges: int

    @property
    def count(self) -> int:
        """Number of tasks."""
        places = self.corpus.places
        return len(places.bands) * places.ranges + (0 if self.corpus.config.containment is None else self.sampled_ranges)

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/band-<band>-<range>/ or dedup/overlap-<range>/."""
        places, copies = self.corpus.places, self.corpus.copies
        band, here = divmod(number, places.ranges)
        if band < len(places.bands):
            count = buckets.find_band(places.sketches, places.begins, band, here, places.ranges, copies, places.bands[band][here])
        else:
            here = number - len(places.bands) * places.ranges
            out = places.overlaps(self.sampled_ranges)[here]
            count = overlap.find_overlap(places.sketches, places.begins, here, self.sampled_ranges, copies, out)
        advance(1)
        return {"edges": count}


@dataclass(frozen=True)
class ContainersTask:
    """Finds the documents in which those of one slice of the corpus may lie."""

    corpus: Comparison
    sampled_ranges: int

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/containers-<number>/."""
        places = self.corpus.places
        assert self.corpus.config.containment is not None
        threshold = self.corpus.config.containment.threshold
        overlaps, out = places.overlaps(self.sampled_ranges), places.containers[number]
        count = overlap.find_containers(overlaps, places.sketches, places.begins, *places.slice(number), threshold, out)
        advance(1)
        return {"edges": count}


@dataclass(frozen=True)
class GroupTask:
    """The one task that sees all edges."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/candidates/."""
        places = self.corpus.places
        edges = [path for paths in places.bands for path in paths]
        groups = candidates.group(places.copies, [*edges, *places.containers], places.candidates)
        advance(1)
        return {"groups": groups}


@dataclass(frozen=True)
class ShinglesTask:
    """Stores the shingles of the candidates of one part."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/shingles-<number>.*."""
        corpus, places = self.corpus, self.corpus.places
        documents = read_documents(clean_file(corpus.work, number))
        words = corpus.config.shingle_words
        count = candidates.store_shingles(documents, *places.span(number), places.candidates, places.shingles[number], words)
        advance(corpus.sizes[number])
        return {"candidates": count}


@dataclass(frozen=True)
class DecideTask:
    """Decides one group of candidates."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/verdicts-<number>/; returns what the report may show of it."""
        places = self.corpus.places
        found = decide.decide(places.candidates, number, places.shingles, places.begins, places.edges, self.corpus.config)
        save(places.verdicts(number), vars(found))
        advance(1)
        return findings(found)


@dataclass(frozen=True)
class SettleTask:
    """Sorts the verdicts on all groups by the parts of one stretch."""

    corpus: Comparison
    groups: int

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes removed/<part>.npy; returns what is left of each part, and what went."""
        corpus, places = self.corpus, self.corpus.places
        parts = settle.stretches(places.begins, places.documents)[number]
        verdicts = [places.verdicts(group) for group in range(self.groups)]
        left = settle.settle(verdicts, places, parts, [removed_file(corpus.work, part) for part in parts])
        advance(1)
        return {"parts": left}


@dataclass(frozen=True)
class LinesTask:
    """Stores the lines of the documents of one part that are left."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes lines/<number>/."""
        corpus = self.corpus
        assert corpus.config.lines is not None
        numbered = Survivors(corpus.config, corpus.work, number, corpus.begins[number], lines=False).numbered()
        count = lines.store_lines(numbered, lines_file(corpus.work, number), corpus.config.lines)
        advance(corpus.sizes[number])
        return {"lines": count}


@dataclass(frozen=True)
class RepeatedTask:
    """Finds the repeated lines of one range of hashes."""

    corpus: Comparison
    ranges: int

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes repeated/<number>/."""
        corpus = self.corpus
        assert corpus.config.lines is not None
        files = [lines_file(corpus.work, part) for part in range(len(corpus.begins))]
        count = lines.find_repeated(files, number, self.ranges, repeated_file(corpus.work, number), corpus.config.lines)
        advance(1)
        return {"repeated": count}
