"""Compare: what the corpus has said before is found and taken out: ids, whole documents, lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_pretrain.corpus.chunk_writer import write_durably
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.dedup import candidates, decide, lines, sketch
from lit_pretrain.prepare.dedup import columns as buckets
from lit_pretrain.prepare.dedup import decide as settle
from lit_pretrain.prepare.dedup import sketch as overlap
from lit_pretrain.prepare.dedup.columns import ranges_for, save_columns
from lit_pretrain.prepare.dedup.decide import REASONS, Places, stretches
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.dedup.dedup_report import DEDUP_FILENAME as DUPLICATES_FILENAME
from lit_pretrain.prepare.dedup.dedup_report import dedup_report, findings
from lit_pretrain.prepare.document_store import Document, read_documents, read_some
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.funnel import without
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.stages.clean import has_ids
from lit_pretrain.prepare.stages.ids import DropTask, TwiceTask, with_ids_file
from lit_pretrain.prepare.stages.ids import id_ranges as id_ranges_for
from lit_pretrain.prepare.survivors import (
    Survivors,
    clean_file,
    lines_file,
    removed_file,
    repeated_file,
)

# Compare: the stages that look at the corpus as a whole, cut into tasks.


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
        count = buckets.find_copies(
            places.sketches, places.begins, number, places.ranges, places.copies[number]
        )
        advance(1)
        return {"copies": count}


@dataclass(frozen=True)
class BucketTask:
    """Finds the documents that share keys of one range, of one band or of the sampled shingles:
    tasks count ranges within bands.
    """

    corpus: Comparison
    sampled_ranges: int

    @property
    def count(self) -> int:
        """Number of tasks."""
        places = self.corpus.places
        return len(places.bands) * places.ranges + (
            0 if self.corpus.config.containment is None else self.sampled_ranges
        )

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/band-<band>-<range>/ or dedup/overlap-<range>/."""
        places, copies = self.corpus.places, self.corpus.copies
        band, here = divmod(number, places.ranges)
        if band < len(places.bands):
            count = buckets.find_band(
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
            count = overlap.find_overlap(
                places.sketches, places.begins, here, self.sampled_ranges, copies, out
            )
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
        count = overlap.find_containers(
            overlaps, places.sketches, places.begins, *places.slice(number), threshold, out
        )
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
        groups = candidates.group_candidates(
            places.copies, [*edges, *places.containers], places.candidates
        )
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
        count = candidates.store_shingles(
            documents, *places.span(number), places.candidates, places.shingles[number], words
        )
        advance(corpus.sizes[number])
        return {"candidates": count}


@dataclass(frozen=True)
class DecideTask:
    """Decides one group of candidates."""

    corpus: Comparison

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes dedup/verdicts-<number>/; returns what the report may show of it."""
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
        left = settle.settle(
            verdicts, places, parts, [removed_file(corpus.work, part) for part in parts]
        )
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
        numbered = Survivors(
            corpus.config, corpus.work, number, corpus.begins[number], lines=False
        ).numbered()
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
        count = lines.find_repeated(
            files, number, self.ranges, repeated_file(corpus.work, number), corpus.config.lines
        )
        advance(1)
        return {"repeated": count}


def drop_ids(run: Preparation) -> None:
    """Takes documents out whose id an earlier one of the source has, in whatever file."""
    parts = tuple(
        number for number, part in enumerate(run.parts) if has_ids(run.config, part.source)
    )
    if not parts:
        return
    last = [run.clean[part]["funnel"][-1] for part in parts]
    ranges = id_ranges_for(sum(step["documents"] for step in last))
    run.do(
        "twice",
        "find ids that occur twice",
        TwiceTask(run.work, parts, ranges),
        [1] * ranges,
        "tasks",
    )
    names = list(run.config.sources)
    task = DropTask(
        run.work,
        parts,
        tuple(names.index(run.parts[part].source) for part in parts),
        tuple(step["bytes"] for step in last),
        tuple(frozenset(document for _, _, document in step["sample"]) for step in last),
        ranges,
    )
    for part, step, found in zip(
        parts,
        last,
        run.do("ids", "take out what has the id of another", task, task.sizes),
        strict=True,
    ):
        left, size = step["documents"] - found["removed"], step["bytes"] - found["bytes"]
        removed = {"duplicate_id": found["removed"]} if found["removed"] else {}
        numbers = dict(found["sampled"])
        gone = {document for _, _, document in step["sample"] if document not in numbers}
        after = without(step, "ids", left, size, gone, removed)
        after["sample"] = [
            (key, text, numbers[document]) for key, text, document in after["sample"]
        ]
        run.clean[part]["funnel"].append(after)
        with_ids_file(run.work, part).unlink(missing_ok=True)


def compare_corpus(run: Preparation) -> None:
    """Finds what was said before: whole documents, then lines."""
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
    """Finds the documents that go; adds them to the funnels of the parts, and writes the report."""
    places = corpus.places
    sketched = run.do("sketch", "sketch documents", SketchTask(corpus), run.left)
    if places.copies:
        run.do("copies", "find exact copies", CopiesTask(corpus), [1] * places.ranges, "tasks")
    sampled_ranges = ranges_for(sum(result["sampled"] for result in sketched))
    if count := (task := BucketTask(corpus, sampled_ranges)).count:
        run.do("bucket", "find documents that may be duplicates", task, [1] * count, "tasks")
    if places.containers:
        run.do(
            "containers",
            "find documents that may hold others",
            ContainersTask(corpus, sampled_ranges),
            [1] * places.ranges,
            "tasks",
        )
    groups = run.do("group", "group them", GroupTask(corpus), [1], "tasks")[0]["groups"]
    run.do("shingles", "read them again", ShinglesTask(corpus), run.left)
    found = run.do("decide", "compare them", DecideTask(corpus), [1] * groups, "tasks")
    count = len(stretches(places.begins, places.documents))
    settled = run.do(
        "settle", "sort out what is left", SettleTask(corpus, groups), [1] * count, "tasks"
    )
    removed = {reason: {"documents": 0, "bytes": 0} for reason in REASONS}
    for left in (left for result in settled for left in result["parts"]):
        gone = {reason: counts["documents"] for reason, counts in left["removed"].items()}
        steps = run.clean[left["part"]]["funnel"]
        which = set(
            (np.load(removed_file(run.work, left["part"])) - places.begins[left["part"]]).tolist()
        )
        steps.append(without(steps[-1], "dedup", left["documents"], left["bytes"], which, gone))
        for reason, counts in left["removed"].items():
            for what, number in counts.items():
                removed[reason][what] += number

    def look_up(wanted: set[int]) -> dict[int, tuple[str, Document]]:
        shown = {}
        for part in range(len(run.parts)):
            begin, end = places.span(part)
            if here := [document - begin for document in wanted if begin <= document < end]:
                for place, document in read_some(clean_file(run.work, part), here).items():
                    shown[begin + place] = (run.parts[part].source, document)
        return shown

    facts = dedup_report(found, removed, look_up)
    write_durably(
        run.dataset / DUPLICATES_FILENAME, json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    )
    _check_left(run)


def _check_left(run: Preparation) -> None:
    """Refuses a source of which comparing whole documents left nothing."""
    for name in run.inputs:
        step = list(run.funnel(name).steps.values())[-1]
        if not step.documents:
            raise emptied(run, name, step.removed)


def emptied(run: Preparation, name: str, gone: Mapping[str, int]) -> UserError:
    """A source of which deduplication left nothing."""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(gone.items()))
    report = run.dataset / DUPLICATES_FILENAME
    shown = f" ({report} shows pairs)" if report.exists() else ""
    return UserError(
        f"sources.{name} is left without a document: all that it says stands in those of other"
        f" sources ({counts}){shown}. Remove it from `sources`; if it is the one to keep, put it"
        " before the others; or compare less: see `dedup`."
    )
