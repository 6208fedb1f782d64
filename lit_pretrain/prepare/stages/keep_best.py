"""Keep best: of each source whose filters say so, the share of the text with the best scores.

A filter with `keep_share` removes nothing by itself, because a share is one of a whole source. Each
part writes the scores and sizes of the documents that all filters kept. From all of them one
process finds the score from which on the share lies, and each part removes its documents below it.
Scores are counted in whole steps, so that neither parts nor their order matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.prepare.dedup.dedup_files import save_column
from lit_pretrain.prepare.document_store import (
    DocumentWriter,
    clean_file,
    read_documents,
)
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.filters.classifier import SCORES, threshold_for
from lit_pretrain.prepare.filters.filter import Chain
from lit_pretrain.prepare.funnel import Rejects
from lit_pretrain.prepare.preparation import DropResult, Preparation
from lit_pretrain.prepare.stages.ids import hashes_file, id_hash, save_hashes, with_ids_file

STEP = "keep_best"
"""Name of the step in the funnel."""


def scored_file(work: Path, number: int) -> Path:
    """Name the file of a part that passed its filters, before the best are chosen."""
    return work / "scored" / f"{number:05d}.parquet"


def save_scores(work: Path, number: int, scores: list[tuple[float, int]]) -> None:
    """Write score, in steps, and UTF-8 bytes of each document of a part, [documents, 2]."""
    # In whole steps: sums of integers are the same in every order, and those of floats are not.
    rows = np.array([(round(s * SCORES), size) for s, size in scores], dtype=np.int64)
    save_column(_scores_file(work, number), rows.reshape(-1, 2))


def _scores_file(work: Path, number: int) -> Path:
    return work / "scored" / f"{number:05d}.npy"


def keep_best(run: Preparation) -> None:
    """Remove, of each source with such a filter, the documents below the best share."""
    shares = {name: Chain(run.config.filters_of(name)).keep_best for name in run.inputs}
    thresholds = {
        name: _threshold(run, name, found[1]) for name, found in shares.items() if found is not None
    }
    parts = tuple(number for number, part in enumerate(run.parts) if part.source in thresholds)
    if not parts:
        return
    last = [run.clean[part]["funnel"][-1] for part in parts]
    names = list(run.config.sources)
    task = KeepBestTask(
        run.work,
        parts,
        tuple(
            names.index(source) if run.config.sources[source].has_ids else None
            for source in (run.parts[part].source for part in parts)
        ),
        tuple(thresholds[run.parts[part].source] for part in parts),
        tuple(frozenset(document for _, _, document in step["sample"]) for step in last),
        run.config.keep_rejects,
    )
    results = run.do("best", "keep the best", task, [step["bytes"] for step in last])
    for part, result, threshold in zip(parts, results, task.thresholds, strict=True):
        run.record_removal(part, STEP, _reason(threshold), result)
        scored_file(run.work, part).unlink(missing_ok=True)


def _threshold(run: Preparation, name: str, share: float) -> int:
    """Find the score, in steps, from which on a share of a source's bytes lies."""
    sizes = np.zeros(SCORES + 1)
    for part in run.parts_of(name):
        rows: npt.NDArray[np.int64] = np.load(_scores_file(run.work, part))
        sizes += np.bincount(rows[:, 0], weights=rows[:, 1], minlength=SCORES + 1)
    scores = np.flatnonzero(sizes)
    return int(threshold_for(scores, sizes[scores], share)) if len(scores) else 0


def _reason(threshold: int) -> str:
    return f"score_below_{threshold / SCORES:.6f}"


@dataclass(frozen=True)
class KeepBestTask:
    """Remove the documents of one part whose score is too low."""

    work: Path
    parts: tuple[int, ...]
    """Those whose source keeps the best."""
    sources: tuple[int | None, ...]
    """Number of the source of each of them, where documents have ids; else None."""
    thresholds: tuple[int, ...]
    """Least score of each of them, in steps."""
    sampled: tuple[frozenset[int], ...]
    """Numbers of the documents of each of them that the funnel's sample holds text of."""
    keep_rejects: int

    def __call__(self, number: int, advance: Advance) -> DropResult:
        """Write what `CleanTask` writes where all documents stay."""
        part, source, threshold = self.parts[number], self.sources[number], self.thresholds[number]
        scores: npt.NDArray[np.int64] = np.load(_scores_file(self.work, part))[:, 0]
        removed = size = 0
        sampled: list[tuple[int, int]] = []
        ids: list[int] = []
        rejects = Rejects(self.keep_rejects)
        target = clean_file if source is None else with_ids_file
        with DocumentWriter(target(self.work, part)) as writer:
            for position, document in enumerate(read_documents(scored_file(self.work, part))):
                if scores[position] < threshold:
                    removed, size = removed + 1, size + len(document.utf8)
                    rejects.offer(STEP, _reason(threshold), document.origin, document.text)
                else:
                    writer.add(document)
                    # The funnel's sample goes by position, which removed documents shift.
                    if position in self.sampled[number]:
                        sampled.append((position, position - removed))
                    if source is not None and (key := id_hash(document, source)) is not None:
                        ids.append(key)
                advance(len(document.utf8))
        if source is not None:
            save_hashes(hashes_file(self.work, part), ids)
        return DropResult(removed=removed, bytes=size, sampled=sampled, rejects=rejects.dump())
