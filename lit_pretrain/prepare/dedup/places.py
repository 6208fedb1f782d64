"""Places: where each step of the comparison leaves its files, and how the corpus is cut for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.prepare.dedup.arrays import ranges_for
from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.dedup.decide import Edges


@dataclass(frozen=True)
class Places:
    """Of one corpus. Ranges are those of `arrays.in_range`: as many as the documents need."""

    config: DedupConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""
    documents: int
    """Of the corpus."""

    @property
    def ranges(self) -> int:
        """Of the keys of a column that has one a document."""
        return ranges_for(self.documents)

    def span(self, part: int) -> tuple[int, int]:
        """(first document, the one after the last) of a part."""
        return self.begins[part], (*self.begins, self.documents)[part + 1]

    def slice(self, number: int) -> tuple[int, int]:
        """The same of one of `ranges` even cuts of the corpus."""
        return self.documents * number // self.ranges, self.documents * (number + 1) // self.ranges

    @property
    def sketches(self) -> list[Path]:
        """Of all parts."""
        return [self.work / f"sketch-{part:05d}" for part in range(len(self.begins))]

    @property
    def copies(self) -> list[Path]:
        """Exact copies, by range."""
        return [self.work / f"copies-{number:05d}" for number in range(self.ranges if self.config.exact else 0)]

    @property
    def bands(self) -> list[list[Path]]:
        """Edges of all bands, by range."""
        count = 0 if self.config.near is None else self.config.near.bands
        return [[self.work / f"band-{band}-{number:05d}" for number in range(self.ranges)] for band in range(count)]

    def overlaps(self, ranges: int) -> list[Path]:
        """Pairs that share sampled shingles, by range of these."""
        return [self.work / f"overlap-{number:05d}" for number in range(ranges)]

    @property
    def containers(self) -> list[Path]:
        """Edges of containment, by slice."""
        return [self.work / f"containers-{number:05d}" for number in range(0 if self.config.containment is None else self.ranges)]

    @property
    def edges(self) -> Edges:
        """All of them."""
        return Edges(self.copies, self.bands, self.containers)

    @property
    def candidates(self) -> Path:
        """Documents that any edge joins."""
        return self.work / "candidates"

    @property
    def shingles(self) -> list[Path]:
        """Of the candidates of all parts."""
        return [self.work / f"shingles-{part:05d}" for part in range(len(self.begins))]

    def verdicts(self, group: int) -> Path:
        """On a group."""
        return self.work / f"verdicts-{group:05d}"
