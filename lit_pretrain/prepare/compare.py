"""Compare: what the corpus has said before is found and taken out: ids, whole documents, lines."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.dedup.arrays import ranges_for
from lit_pretrain.prepare.dedup.decide import REASONS
from lit_pretrain.prepare.dedup.report import FILENAME as DUPLICATES_FILENAME
from lit_pretrain.prepare.dedup.report import report
from lit_pretrain.prepare.dedup.settle import stretches
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.funnel import without
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.shard import write_durably
from lit_pretrain.prepare.store import read_some
from lit_pretrain.prepare.survivors import clean_file, removed_file
from lit_pretrain.prepare.tasks.clean import has_ids
from lit_pretrain.prepare.tasks.compare import (
    BucketTask,
    Comparison,
    ContainersTask,
    CopiesTask,
    DecideTask,
    GroupTask,
    LinesTask,
    RepeatedTask,
    SettleTask,
    ShinglesTask,
    SketchTask,
)
from lit_pretrain.prepare.tasks.ids import DropTask, TwiceTask, with_ids_file
from lit_pretrain.prepare.tasks.ids import ranges_for as id_ranges_for


def drop_ids(run: Preparation) -> None:
    """Takes documents out whose id an earlier one of the source has, in whatever file."""
    parts = tuple(number for number, part in enumerate(run.parts) if has_ids(run.config, part.source))
    if not parts:
        return
    last = [run.clean[part]["funnel"][-1] for part in parts]
    ranges = id_ranges_for(sum(step["documents"] for step in last))
    run.do("twice", "find ids that occur twice", TwiceTask(run.work, parts, ranges), [1] * ranges, "tasks")
    names = list(run.config.sources)
    task = DropTask(
        run.work,
        parts,
        tuple(names.index(run.parts[part].source) for part in parts),
        tuple(step["bytes"] for step in last),
        tuple(frozenset(document for _, _, document in step["sample"]) for step in last),
        ranges,
    )
    for part, step, found in zip(parts, last, run.do("ids", "take out what has the id of another", task, task.sizes), strict=True):
        left, size = step["documents"] - found["removed"], step["bytes"] - found["bytes"]
        removed = {"duplicate_id": found["removed"]} if found["removed"] else {}
        numbers = dict(found["sampled"])
        gone = {document for _, _, document in step["sample"] if document not in numbers}
        after = without(step, "ids", left, size, gone, removed)
        after["sample"] = [(key, text, numbers[document]) for key, text, document in after["sample"]]
        run.clean[part]["funnel"].append(after)
        with_ids_file(run.work, part).unlink(missing_ok=True)


def compare(run: Preparation) -> None:
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
        run.do("repeated", "find repeated lines", RepeatedTask(corpus, ranges), [1] * ranges, "tasks")


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
        run.do("containers", "find documents that may hold others", ContainersTask(corpus, sampled_ranges), [1] * places.ranges, "tasks")
    groups = run.do("group", "group them", GroupTask(corpus), [1], "tasks")[0]["groups"]
    run.do("shingles", "read them again", ShinglesTask(corpus), run.left)
    found = run.do("decide", "compare them", DecideTask(corpus), [1] * groups, "tasks")
    count = len(stretches(places.begins, places.documents))
    settled = run.do("settle", "sort out what is left", SettleTask(corpus, groups), [1] * count, "tasks")
    removed = {reason: {"documents": 0, "bytes": 0} for reason in REASONS}
    for left in (left for result in settled for left in result["parts"]):
        gone = {reason: counts["documents"] for reason, counts in left["removed"].items()}
        steps = run.clean[left["part"]]["funnel"]
        which = set((np.load(removed_file(run.work, left["part"])) - places.begins[left["part"]]).tolist())
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

    facts = report(found, removed, look_up)
    write_durably(run.dataset / DUPLICATES_FILENAME, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
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
        f"sources.{name} is left without a document: all that it says stands in those of other sources ({counts}){shown}. Remove it "
        "from `sources`; if it is the one to keep, put it before the others; or compare less: see `dedup`."
    )
