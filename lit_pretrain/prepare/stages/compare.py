"""Compare: take out what the corpus has said before, whole documents first and then lines.

The steps are those of `lit_pretrain.prepare.dedup`, each cut into tasks. `Survivors` then iterates
over what is left of a part, for every stage that follows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypedDict

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.prepare.dedup import candidates, decide, edges, repeated_lines, sketch
from lit_pretrain.prepare.dedup.columns import ranges_for, save_columns
from lit_pretrain.prepare.dedup.decide import REASONS, RemovedCounts, SettledPart, stretches
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.dedup.dedup_report import (
    DEDUP_FILENAME,
    Findings,
    dedup_report,
    findings,
)
from lit_pretrain.prepare.dedup.places import Places
from lit_pretrain.prepare.dedup.repeated_lines import Repeated
from lit_pretrain.prepare.document_store import Document, clean_file, read_documents, read_some
from lit_pretrain.prepare.engine.task_stage import Advance, PrepareTask, Result
from lit_pretrain.prepare.funnel import step_after_removal
from lit_pretrain.prepare.preparation import Preparation


def compare_corpus(run: Preparation) -> None:
    """Find what the corpus has said before: whole documents, then lines."""
    config = run.config.dedup
    if config is None:
        return
    corpus = Comparison(config, run.work, run.begins, run.documents, tuple(run.left))
    if config.compares:
        _compare_documents(run, corpus)
    if config.lines is not None:
        counts = run.do("lines", "hash lines", LinesTask(corpus), run.left)
        ranges = ranges_for(sum(result["lines"] for result in counts))
        run.do(
            "repeated", "find repeated lines", RepeatedTask(corpus, ranges), [1] * ranges, "tasks"
        )


def _compare_documents(run: Preparation, corpus: Comparison) -> None:
    """Find the documents that go; add the step to the funnels, and write the report."""
    found, left_of_parts = find_duplicates(corpus, run.do)
    removed = {reason: RemovedCounts(documents=0, bytes=0) for reason in REASONS}
    for left in left_of_parts:
        begin = corpus.begins[left["part"]]
        steps = run.clean[left["part"]]["funnel"]
        after = step_after_removal(
            steps[-1],
            "dedup",
            documents=left["documents"],
            size=left["bytes"],
            gone=set((np.load(removed_file(run.work, left["part"])) - begin).tolist()),
            removed={reason: counts["documents"] for reason, counts in left["removed"].items()},
        )
        steps.append(after)
        for reason, counts in left["removed"].items():
            removed[reason]["documents"] += counts["documents"]
            removed[reason]["bytes"] += counts["bytes"]

    def look_up(wanted: set[int]) -> dict[int, tuple[str, Document]]:
        """Find the source and the text of some documents by their number in the corpus."""
        shown = {}
        for part in range(len(run.parts)):
            begin, end = corpus.places.span(part)
            if here := [document - begin for document in wanted if begin <= document < end]:
                for place, document in read_some(clean_file(run.work, part), here).items():
                    shown[begin + place] = (run.parts[part].source, document)
        return shown

    report = dedup_report(found, removed, look_up)
    write_file(
        run.dataset / DEDUP_FILENAME, json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    )
    for name in run.inputs:
        last = list(run.funnel(name).steps.values())[-1]
        if not last.documents:
            raise all_duplicates(run, name, last.removed)


class RunStage(Protocol):
    """Run the tasks of a stage, as `Preparation.do` does."""

    def __call__(
        self,
        name: str,
        title: str,
        task: PrepareTask[Result],
        sizes: Sequence[int],
        unit: Literal["bytes", "tasks"] = "bytes",
    ) -> list[Result]:
        """Return the results of all tasks."""


def find_duplicates(corpus: Comparison, do: RunStage) -> tuple[list[Findings], list[SettledPart]]:
    """Find the documents that go, in stages that each look at a part, a range or a group.

    Args:
        corpus: The corpus, whose cleaned documents lie in its directory.
        do: Runs a stage.

    Returns:
        The `findings` of each group, and what `decide.settle` says of each part.
    """
    places = corpus.places
    sketched = do("sketch", "sketch documents", SketchTask(corpus), corpus.sizes)
    if places.copies:
        do("copies", "find exact copies", CopiesTask(corpus), [1] * places.ranges, "tasks")
    sampled_ranges = ranges_for(sum(result["sampled"] for result in sketched))
    if count := (task := BucketTask(corpus, sampled_ranges)).count:
        do("bucket", "find pairs of similar documents", task, [1] * count, "tasks")
    if places.containers:
        do(
            "containers",
            "find documents that may contain others",
            ContainersTask(corpus, sampled_ranges),
            [1] * places.ranges,
            "tasks",
        )
    groups = do("group", "group similar documents", GroupTask(corpus), [1], "tasks")[0]["groups"]
    do("shingles", "read similar documents again", ShinglesTask(corpus), corpus.sizes)
    found = do("decide", "compare similar documents", DecideTask(corpus), [1] * groups, "tasks")
    count = len(stretches(places.begins, places.documents))
    settle = SettleTask(corpus, groups)
    settled = do("settle", "list the duplicates of each part", settle, [1] * count, "tasks")
    return found, [left for result in settled for left in result["parts"]]


def all_duplicates(run: Preparation, name: str, removed: Mapping[str, int]) -> UserError:
    """Explain that deduplication left nothing of a source."""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(removed.items()))
    report = run.dataset / DEDUP_FILENAME
    shown = f" ({report} shows pairs)" if report.exists() else ""
    return UserError(
        f"sources.{name} is left without a document: all that it says stands in those of other"
        f" sources ({counts}){shown}. Remove it from `sources`; if it is the one to keep, put it"
        " before the others; or compare less: see `dedup`."
    )


@dataclass(frozen=True)
class Comparison:
    """The corpus as the tasks of this stage see it."""

    config: DedupConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""
    documents: int
    """Documents in the corpus."""
    sizes: tuple[int, ...]
    """UTF-8 bytes of each part."""

    @property
    def places(self) -> Places:
        """Name the files of the steps."""
        return Places(self.config, self.work / "dedup", self.begins, self.documents)

    @property
    def copies(self) -> edges.Copies:
        """Load which documents are exact copies."""
        return edges.Copies(self.places.copies, self.documents)


class SketchResult(TypedDict):
    """The result of a SketchTask."""

    documents: int
    sampled: int
    """Shingles that were sampled for containment."""


@dataclass(frozen=True)
class SketchTask:
    """Sketch one part."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> SketchResult:
        """Write dedup/sketch-<number>/."""
        corpus = self.corpus
        documents = read_documents(clean_file(corpus.work, number))
        count, sampled = sketch.sketch(documents, corpus.places.sketches[number], corpus.config)
        advance(corpus.sizes[number])
        return SketchResult(documents=count, sampled=sampled)


class CopiesResult(TypedDict):
    """The result of a CopiesTask."""

    copies: int


@dataclass(frozen=True)
class CopiesTask:
    """Find the exact copies in one range of hashes."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> CopiesResult:
        """Write dedup/copies-<number>/."""
        places = self.corpus.places
        count = edges.find_copies(
            places.sketches, places.begins, number, places.ranges, places.copies[number]
        )
        advance(1)
        return CopiesResult(copies=count)


class EdgesResult(TypedDict):
    """The result of a BucketTask or ContainersTask."""

    edges: int


@dataclass(frozen=True)
class BucketTask:
    """Find the documents that share keys of one range, of one band or of the sampled shingles.

    The numbers of the tasks count ranges within bands.
    """

    corpus: Comparison
    sampled_ranges: int

    @property
    def count(self) -> int:
        """Count the tasks."""
        places = self.corpus.places
        return len(places.bands) * places.ranges + (
            0 if self.corpus.config.containment is None else self.sampled_ranges
        )

    def __call__(self, number: int, advance: Advance) -> EdgesResult:
        """Write dedup/band-<band>-<range>/ or dedup/overlap-<range>/."""
        places, copies = self.corpus.places, self.corpus.copies
        band, here = divmod(number, places.ranges)
        if band < len(places.bands):
            count = edges.find_band(
                places.sketches,
                places.begins,
                band,
                here,
                places.ranges,
                copies,
                places.bands[band][here],
            )
        else:
            here = number - len(places.bands) * places.ranges
            out = places.overlaps(self.sampled_ranges)[here]
            count = edges.find_overlap(
                places.sketches, places.begins, here, self.sampled_ranges, copies, out
            )
        advance(1)
        return EdgesResult(edges=count)


@dataclass(frozen=True)
class ContainersTask:
    """Find the documents in which those of one slice of the corpus may lie."""

    corpus: Comparison
    sampled_ranges: int

    def __call__(self, number: int, advance: Advance) -> EdgesResult:
        """Write dedup/containers-<number>/."""
        places = self.corpus.places
        assert self.corpus.config.containment is not None
        threshold = self.corpus.config.containment.threshold
        overlaps, out = places.overlaps(self.sampled_ranges), places.containers[number]
        count = edges.find_containers(
            overlaps, places.sketches, places.begins, *places.slice(number), threshold, out
        )
        advance(1)
        return EdgesResult(edges=count)


class GroupResult(TypedDict):
    """The result of a GroupTask."""

    groups: int


@dataclass(frozen=True)
class GroupTask:
    """Group the documents that edges join; the only task that sees all edges."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> GroupResult:
        """Write dedup/candidates/."""
        places = self.corpus.places
        bands = [path for paths in places.bands for path in paths]
        groups = candidates.group_candidates(
            places.copies, [*bands, *places.containers], places.candidates
        )
        advance(1)
        return GroupResult(groups=groups)


class ShinglesResult(TypedDict):
    """The result of a ShinglesTask."""

    candidates: int


@dataclass(frozen=True)
class ShinglesTask:
    """Store the shingles of the candidates of one part."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> ShinglesResult:
        """Write dedup/shingles-<number>.*."""
        corpus, places = self.corpus, self.corpus.places
        documents = read_documents(clean_file(corpus.work, number))
        words = corpus.config.shingle_words
        count = candidates.store_shingles(
            documents, *places.span(number), places.candidates, places.shingles[number], words
        )
        advance(corpus.sizes[number])
        return ShinglesResult(candidates=count)


@dataclass(frozen=True)
class DecideTask:
    """Decide which documents of one group of candidates go."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> Findings:
        """Write dedup/verdicts-<number>/, and return what the report may show of it."""
        places = self.corpus.places
        found = decide.decide(
            places.candidates,
            number,
            places.shingles,
            places.begins,
            places.edges,
            self.corpus.config,
        )
        save_columns(places.verdicts(number), vars(found))
        advance(1)
        return findings(found)


class SettleResult(TypedDict):
    """The result of a SettleTask."""

    parts: list[SettledPart]
    """What is left of each part of the stretch, as `decide.settle` returns it."""


@dataclass(frozen=True)
class SettleTask:
    """Sort the verdicts on all groups by the parts of one stretch."""

    corpus: Comparison
    groups: int

    def __call__(self, number: int, advance: Advance) -> SettleResult:
        """Write removed/<part>.npy of each part, and return what is left of it and what went."""
        corpus, places = self.corpus, self.corpus.places
        parts = stretches(places.begins, places.documents)[number]
        verdicts = [places.verdicts(group) for group in range(self.groups)]
        left = decide.settle(
            verdicts, places, parts, [removed_file(corpus.work, part) for part in parts]
        )
        advance(1)
        return SettleResult(parts=left)


class LinesResult(TypedDict):
    """The result of a LinesTask."""

    lines: int


@dataclass(frozen=True)
class LinesTask:
    """Store the hashes of the lines of one part, in the documents that are left."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> LinesResult:
        """Write lines/<number>/."""
        corpus = self.corpus
        assert corpus.config.lines is not None
        numbered = Survivors(
            corpus.config, corpus.work, number, corpus.begins[number], lines=False
        ).numbered()
        count = repeated_lines.store_lines(
            numbered, lines_file(corpus.work, number), corpus.config.lines
        )
        advance(corpus.sizes[number])
        return LinesResult(lines=count)


class RepeatedResult(TypedDict):
    """The result of a RepeatedTask."""

    repeated: int


@dataclass(frozen=True)
class RepeatedTask:
    """Find the repeated lines of one range of hashes."""

    corpus: Comparison
    ranges: int

    def __call__(self, number: int, advance: Advance) -> RepeatedResult:
        """Write repeated/<number>/."""
        corpus = self.corpus
        assert corpus.config.lines is not None
        files = [lines_file(corpus.work, part) for part in range(len(corpus.begins))]
        count = repeated_lines.find_repeated(
            files, number, self.ranges, repeated_file(corpus.work, number), corpus.config.lines
        )
        advance(1)
        return RepeatedResult(repeated=count)


class Survivors:
    """Iterate over the documents of a part that are left after the comparison.

    Every later stage reads the same ones. Holds the numbers of the documents that were removed
    from the part, and the hashes of its repeated lines.

    Args:
        config: How documents were compared; None when they were not.
        work: The directory of the preparation.
        number: The part.
        begin: Number of its first document in the corpus.
        lines: Whether to take out repeated lines.
    """

    def __init__(
        self, config: DedupConfig | None, work: Path, number: int, begin: int, *, lines: bool = True
    ) -> None:
        self._config = config
        self._file = clean_file(work, number)
        self._begin = begin
        self._removed: frozenset[int] = frozenset()
        self._repeated: Repeated | None = None
        self.changed = 0
        """Documents that lost lines."""
        self.lines = 0
        """Lines that they lost."""
        self.emptied = 0
        """Documents that lost all their lines."""
        if config is not None:
            if config.compares:
                self._removed = frozenset(np.load(removed_file(work, number)).tolist())
            if lines and config.lines is not None:
                self._repeated = Repeated(
                    sorted((work / "repeated").glob("[0-9]*")), lines_file(work, number)
                )

    def __iter__(self) -> Iterator[Document]:
        for _, document in self.numbered():
            yield document

    def numbered(self) -> Iterator[tuple[int, Document]]:
        """Yield (number in the corpus, document)."""
        for number, document in enumerate(read_documents(self._file), start=self._begin):
            if number in self._removed:
                continue
            if self._repeated is not None:
                assert self._config is not None
                assert self._config.lines is not None
                text, gone = self._repeated.without(document.text, number, self._config.lines)
                if gone:
                    self.changed += 1
                    self.lines += gone
                    if not text.strip():
                        self.emptied += 1
                        continue
                    document = dataclasses.replace(document, text=text)
            yield number, document


def removed_file(work: Path, number: int) -> Path:
    """Name the file with the numbers of the documents of a part that were removed."""
    return work / "removed" / f"{number:05d}.npy"


def lines_file(work: Path, number: int) -> Path:
    """Name the directory with the hashes of the lines of a part."""
    return work / "lines" / f"{number:05d}"


def repeated_file(work: Path, number: int) -> Path:
    """Name the directory with one range of the repeated lines."""
    return work / "repeated" / f"{number:05d}"
