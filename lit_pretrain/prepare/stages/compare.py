"""Compare: take out what the corpus has said before, whole documents first and then lines.

The steps are those of `lit_pretrain.prepare.dedup`. Each is a function here of the corpus and the
number of a part, of a range of keys or of a _group, which runs as one task. `Survivors` then
iterates over what is left of a part, for every stage that follows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.prepare.dedup import decide, edges, repeated_lines, sketch
from lit_pretrain.prepare.dedup.decide import (
    REASONS,
    DuplicateExample,
    RemovedCounts,
    SettledPart,
    stretches,
)
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.dedup.dedup_files import Places, ranges_for, save_columns
from lit_pretrain.prepare.dedup.dedup_report import (
    DEDUP_FILENAME,
    Findings,
    dedup_report,
    findings,
    random_order,
)
from lit_pretrain.prepare.dedup.repeated_lines import RepeatedLines
from lit_pretrain.prepare.document_store import Document, clean_file, read_documents, read_some
from lit_pretrain.prepare.engine.task_stage import Advance, PrepareTask, Result
from lit_pretrain.prepare.funnel import (
    DuplicateOf,
    RejectRecord,
    Rejects,
    excerpt,
    reject_record,
    step_after_removal,
)
from lit_pretrain.prepare.preparation import Preparation


def compare_corpus(run: Preparation) -> None:
    """Find what the corpus has said before: whole documents, then lines."""
    config = run.config.dedup
    if config is None:
        return
    corpus = Comparison(
        config,
        run.work,
        run.begins,
        run.documents,
        tuple(run.left),
        keep_rejects=run.config.keep_rejects,
    )
    if config.compares:
        _compare_documents(run, corpus)
    if config.lines is not None:
        stages = CompareStages(corpus, run.do)
        ranges = ranges_for(sum(stages.by_part("lines", "hash lines", _store_lines)))
        repeated = functools.partial(_find_repeated_lines, ranges=ranges)
        stages.by_number("repeated", "find repeated lines", repeated, ranges)


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

    run.duplicates = _duplicates(run, left_of_parts, look_up)
    report = dedup_report(found, removed, look_up)
    write_file(
        run.dataset / DEDUP_FILENAME, json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    )
    for name in run.inputs:
        last = list(run.funnel(name).steps.values())[-1]
        if not last.documents:
            raise all_duplicates(run, name, last.removed)


def _duplicates(
    run: Preparation,
    parts: Sequence[SettledPart],
    look_up: Callable[[set[int]], dict[int, tuple[str, Document]]],
) -> dict[str, list[RejectRecord]]:
    """Choose `keep_rejects` duplicates of each source and reason, and show what they repeat.

    The choice does not depend on the parts: it is by a hash of the document's number.
    """
    of_source: dict[tuple[str, int], list[DuplicateExample]] = {}
    for left in parts:
        for row in left["rejects"]:
            key = (run.parts[left["part"]].source, row[0])
            of_source.setdefault(key, []).append((row[0], row[1], row[2], row[3]))
    keep = run.config.keep_rejects
    chosen = {key: sorted(rows, key=random_order)[:keep] for key, rows in of_source.items()}
    found = look_up({number for rows in chosen.values() for row in rows for number in row[2:]})
    shown: dict[str, list[RejectRecord]] = {}
    for (source, reason), rows in sorted(chosen.items()):
        for _, similarity, document, kept in rows:
            removed, (kept_source, stays) = found[document][1], found[kept]
            record = reject_record("dedup", REASONS[reason], removed.origin, removed.text)
            record["duplicate_of"] = DuplicateOf(
                source=kept_source,
                origin=stays.origin,
                similarity=round(similarity, 4),
                text=excerpt(stays.text),
            )
            shown.setdefault(source, []).append(record)
    return shown


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
        The `findings` of each _group, and what `decide.settle` says of each part.
    """
    places, stages = corpus.places, CompareStages(corpus, do)
    sketched = stages.by_part("sketch", "sketch documents", _sketch_part)
    if places.copies:
        stages.by_number("copies", "find exact copies", _find_copies, places.ranges)
    sampled_ranges = ranges_for(sum(sketched))
    pairs = len(places.bands) * places.ranges
    if corpus.config.containment is not None:
        pairs += sampled_ranges
    if pairs:
        similar = functools.partial(_find_pairs, sampled_ranges=sampled_ranges)
        stages.by_number("bucket", "find pairs of similar documents", similar, pairs)
    if places.containers:
        stages.by_number(
            "containers",
            "find documents that may contain others",
            functools.partial(_find_containers, sampled_ranges=sampled_ranges),
            places.ranges,
        )
    groups = stages.by_number("group", "group similar documents", _group, 1)[0]
    stages.by_part("shingles", "read similar documents again", _store_shingles)
    found = stages.by_number("decide", "compare similar documents", _decide_group, groups)
    settle = functools.partial(_settle_stretch, groups=groups)
    count = len(stretches(places.begins, places.documents))
    settled = stages.by_number("settle", "list the duplicates of each part", settle, count)
    return found, [left for parts in settled for left in parts]


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
    keep_rejects: int = 0
    """How many duplicates of each part and reason to choose, for a person to read."""

    @property
    def places(self) -> Places:
        """Name the files of the steps."""
        return Places(self.config, self.work / "dedup", self.begins, self.documents)

    @property
    def copies(self) -> edges.Copies:
        """Load which documents are exact copies."""
        return edges.Copies(self.places.copies, self.documents)


CompareStep = Callable[["Comparison", int], Result]
"""(corpus, number of the part, range or group) -> what is found. A function of a module, or a
partial one, for it is pickled.
"""


@dataclass(frozen=True)
class CompareTask(Generic[Result]):
    """Run a step of the comparison as the task of a stage."""

    step: CompareStep[Result]
    corpus: Comparison
    sizes: tuple[int, ...]

    def __call__(self, number: int, advance: Advance) -> Result:
        """Write the files of the step for one number."""
        found = self.step(self.corpus, number)
        advance(self.sizes[number])
        return found


@dataclass(frozen=True)
class CompareStages:
    """Run steps of the comparison as stages, and return the results of all their tasks."""

    corpus: Comparison
    do: RunStage

    def by_part(self, name: str, title: str, step: CompareStep[Result]) -> list[Result]:
        """Run a step that reads the text of each part."""
        sizes = self.corpus.sizes
        return self.do(name, title, CompareTask(step, self.corpus, sizes), sizes)

    def by_number(
        self, name: str, title: str, step: CompareStep[Result], count: int
    ) -> list[Result]:
        """Run a step for each number below `count`: of ranges, groups or stretches."""
        sizes = (1,) * count
        return self.do(name, title, CompareTask(step, self.corpus, sizes), sizes, "tasks")


# The steps. `places` names the files that each of them writes; a number that one returns says how
# much it found.


def _sketch_part(corpus: Comparison, number: int) -> int:
    """Sketch a part; count the shingles that were sampled for containment."""
    documents = read_documents(clean_file(corpus.work, number))
    _, sampled = sketch.sketch(documents, corpus.places.sketches[number], corpus.config)
    return sampled


def _find_copies(corpus: Comparison, number: int) -> int:
    """Find the exact copies in one range of hashes."""
    places = corpus.places
    out = places.copies[number]
    return edges.find_copies(places.sketches, places.begins, number, places.ranges, out)


def _find_pairs(corpus: Comparison, number: int, sampled_ranges: int) -> int:
    """Find the documents that share keys of one range, of one band or of the sampled shingles.

    Numbers count the ranges of each band, and then those of the sampled shingles.
    """
    places, copies = corpus.places, corpus.copies
    band, here = divmod(number, places.ranges)
    if band < len(places.bands):
        out, ranges = places.bands[band][here], places.ranges
        count = edges.find_band(places.sketches, places.begins, band, here, ranges, copies, out)
    else:
        here = number - len(places.bands) * places.ranges
        out, ranges = places.overlaps(sampled_ranges)[here], sampled_ranges
        count = edges.find_overlap(places.sketches, places.begins, here, ranges, copies, out)
    return count


def _find_containers(corpus: Comparison, number: int, sampled_ranges: int) -> int:
    """Find the documents that may contain those of one slice of the corpus."""
    places = corpus.places
    assert corpus.config.containment is not None
    return edges.find_containers(
        places.overlaps(sampled_ranges),
        places.sketches,
        places.begins,
        *places.slice(number),
        corpus.config.containment.threshold,
        places.containers[number],
    )


def _group(corpus: Comparison, number: int) -> int:
    """Group the documents that edges join; the only task that sees all edges."""
    places = corpus.places
    bands = [path for paths in places.bands for path in paths]
    others = [*bands, *places.containers]
    return edges.group_candidates(places.copies, others, places.candidates)


def _store_shingles(corpus: Comparison, number: int) -> int:
    """Store the shingles of the documents of a part that are compared by them."""
    places, words = corpus.places, corpus.config.shingle_words
    documents = read_documents(clean_file(corpus.work, number))
    begin, end = places.span(number)
    out = places.shingles[number]
    return sketch.store_shingles(documents, begin, end, places.candidates, out, words)


def _decide_group(corpus: Comparison, number: int) -> Findings:
    """Decide which documents of one group go, and return what the report may show of it."""
    places = corpus.places
    removed = decide.decide(
        places.candidates, number, places.shingles, places.begins, places.edges, corpus.config
    )
    save_columns(places.verdicts(number), vars(removed))
    return findings(removed)


def _settle_stretch(corpus: Comparison, number: int, groups: int) -> list[SettledPart]:
    """Sort the verdicts on all groups by the parts of one stretch; return what is left of each."""
    places = corpus.places
    parts = stretches(places.begins, places.documents)[number]
    verdicts = [places.verdicts(each) for each in range(groups)]
    out = [removed_file(corpus.work, n) for n in parts]
    return decide.settle(verdicts, places, parts, out, corpus.keep_rejects)


def _store_lines(corpus: Comparison, number: int) -> int:
    """Store the hashes of the lines of one part, in the documents that are left."""
    config, begin = corpus.config, corpus.begins[number]
    assert config.lines is not None
    left = Survivors(config, corpus.work, number, begin, lines=False).numbered()
    out = lines_file(corpus.work, number)
    return repeated_lines.store_lines(left, out, config.lines)


def _find_repeated_lines(corpus: Comparison, number: int, ranges: int) -> int:
    """Find the repeated lines of one range of hashes."""
    assert corpus.config.lines is not None
    files = [lines_file(corpus.work, part) for part in range(len(corpus.begins))]
    out = repeated_file(corpus.work, number)
    return repeated_lines.find_repeated_lines(files, number, ranges, out, corpus.config.lines)


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
        keep_rejects: How many of the documents that lose all their lines to keep in `rejects`.
    """

    def __init__(
        self,
        config: DedupConfig | None,
        work: Path,
        number: int,
        begin: int,
        *,
        lines: bool = True,
        keep_rejects: int = 0,
    ) -> None:
        self._config = config
        self._file = clean_file(work, number)
        self._begin = begin
        self._removed: frozenset[int] = frozenset()
        self._repeated: RepeatedLines | None = None
        self.changed = 0
        """Documents that lost lines."""
        self.lines = 0
        """Lines that they lost."""
        self.emptied = 0
        """Documents that lost all their lines."""
        self.rejects = Rejects(keep_rejects)
        """A sample of these."""
        if config is not None:
            if config.compares:
                self._removed = frozenset(np.load(removed_file(work, number)).tolist())
            if lines and config.lines is not None:
                self._repeated = RepeatedLines(
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
                text, gone = self._repeated.drop_from(document.text, number, self._config.lines)
                if gone:
                    self.changed += 1
                    self.lines += gone
                    if not text.strip():
                        self.emptied += 1
                        self.rejects.offer("lines", "nothing_left", document.origin, document.text)
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
