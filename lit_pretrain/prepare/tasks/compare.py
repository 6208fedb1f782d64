"""Compare: the stages that look at the corpus as a whole, cut into tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.dedup import buckets, candidates, decide, lines, sketch
from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.engine.stage import Advance
from lit_pretrain.prepare.store import read_documents
from lit_pretrain.prepare.survivors import Survivors, clean_file, removed_file, repeated_file


@dataclass(frozen=True)
class Comparison:
    """The corpus as these tasks see it."""

    config: DedupConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""
    sizes: tuple[int, ...]
    """UTF-8 bytes of each part."""

    def sketch(self, part: int) -> Path:
        """Sketches of a part."""
        return self.work / "dedup" / f"sketch-{part:05d}.npz"

    @property
    def sketches(self) -> list[Path]:
        """Of all parts."""
        return [self.sketch(part) for part in range(len(self.begins))]

    @property
    def edges(self) -> dict[str, Path]:
        """Of all columns."""
        return {column: self.work / "dedup" / f"edges-{column}.npz" for column in buckets.columns(self.config)}

    @property
    def candidates(self) -> Path:
        """Documents that any bucket joins."""
        return self.work / "dedup" / "candidates.npz"

    @property
    def shingles(self) -> list[Path]:
        """Of the candidates of all parts."""
        return [self.work / "dedup" / f"shingles-{part:05d}" for part in range(len(self.begins))]

    def lines(self, part: int) -> Path:
        """Lines of a part."""
        return self.work / "dedup" / f"lines-{part:05d}.npz"


@dataclass(frozen=True)
class SketchTask:
    """Sketches one part."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/sketch-<number>.npz."""
        corpus = self.corpus
        count = sketch.sketch(read_documents(clean_file(corpus.work, number)), corpus.sketch(number), corpus.config)
        advance(corpus.sizes[number])
        return {"documents": count}


@dataclass(frozen=True)
class BucketTask:
    """Finds the documents that share one column."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/edges-<column>.npz."""
        column, path = list(self.corpus.edges.items())[number]
        edges = buckets.bucket(self.corpus.sketches, column, path, self.corpus.config)
        advance(1)
        return {"column": column, "edges": edges}


@dataclass(frozen=True)
class GroupTask:
    """The one task that sees all edges."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/candidates.npz."""
        groups = candidates.group(list(self.corpus.edges.values()), self.corpus.candidates)
        advance(1)
        return {"groups": groups}


@dataclass(frozen=True)
class ShinglesTask:
    """Stores the shingles of the candidates of one part."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/shingles-<number>.*."""
        corpus = self.corpus
        documents = read_documents(clean_file(corpus.work, number))
        begin, path = corpus.begins[number], corpus.shingles[number]
        count = candidates.store_shingles(documents, begin, corpus.candidates, path, corpus.config.shingle_words)
        advance(corpus.sizes[number])
        return {"candidates": count}


@dataclass(frozen=True)
class DecideTask:
    """Decides one group of candidates."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes removed/<number>.npz."""
        corpus = self.corpus
        found = decide.decide(corpus.sketches, corpus.candidates, number, corpus.shingles, corpus.edges.get("sample"), corpus.config)
        found.save(removed_file(corpus.work, number))
        advance(1)
        return {"removed": len(found.document)}


@dataclass(frozen=True)
class LinesTask:
    """Stores the lines of the documents of one part that are left."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/lines-<number>.npz."""
        corpus = self.corpus
        assert corpus.config.lines is not None
        numbered = Survivors(corpus.config, corpus.work, number, corpus.begins[number], lines=False).numbered()
        count = lines.store_lines(numbered, corpus.lines(number), corpus.config.lines)
        advance(corpus.sizes[number])
        return {"lines": count}


@dataclass(frozen=True)
class RepeatedTask:
    """Finds the repeated lines of one range of hashes."""

    corpus: Comparison
    ranges: int

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes repeated/<number>.npz."""
        corpus = self.corpus
        assert corpus.config.lines is not None
        files = [corpus.lines(part) for part in range(len(corpus.begins))]
        count = lines.find_repeated(files, number, self.ranges, repeated_file(corpus.work, number), corpus.config.lines)
        advance(1)
        return {"repeated": count}
