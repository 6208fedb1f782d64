"""Clean: all steps that look at one document at a time, from raw files to the documents to compare.

The steps are read → filters → decontaminate → pii.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.evaluation_set import (
    DecontaminateConfig,
    DecontaminationHit,
    DecontaminationTally,
)
from lit_pretrain.prepare.document_store import Document, DocumentWriter, clean_file
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.filters.filter import Chain
from lit_pretrain.prepare.funnel import Funnel, Rejects, block_threshold
from lit_pretrain.prepare.inputs import Part
from lit_pretrain.prepare.missing_segmenter import counts_words
from lit_pretrain.prepare.pii.redact import Redactor
from lit_pretrain.prepare.preparation import CleanResult, CountsRecord, ExampleRecord
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.read.read_source import ReadCounts, SourceReader, check_bad
from lit_pretrain.prepare.read.reader import BadRecord, ReadPolicy
from lit_pretrain.prepare.stages.ids import (
    hashes_file,
    id_hash,
    save_hashes,
    with_ids_file,
)
from lit_pretrain.prepare.stages.keep_best import save_scores, scored_file
from lit_pretrain.words import has_segmenter, language_without_spaces


@dataclass(frozen=True)
class CleanTask:
    """Clean one part."""

    config: PrepareConfig
    parts: tuple[Part, ...]
    work: Path

    def __call__(self, number: int, advance: Advance) -> CleanResult:
        """Write clean/<number>.parquet.

        In its place, write the files of `stages.keep_best` if only the best documents stay, or
        those of `stages.ids` if documents have ids.
        """
        part, config = self.parts[number], self.config
        steps = _Steps(
            config,
            part.source,
            self.work,
            block_threshold(
                sum(other.bytes for other in self.parts if other.source == part.source)
            ),
        )
        policy = ReadPolicy(config.errors, config.too_large, config.max_document_bytes)
        reader = SourceReader(
            config.sources[part.source], part.files, policy, self.work / "fetched" / f"{number:05d}"
        )
        has_ids = config.sources[part.source].has_ids
        place = list(config.sources).index(part.source) if has_ids else None
        ids: list[int] = []
        scores: list[tuple[float, int]] = []
        # Only `clean_file` is final; what another stage will take documents from has that stage's
        # name.
        name_file = scored_file if steps.keeps_best else with_ids_file if has_ids else clean_file
        with DocumentWriter(name_file(self.work, number)) as writer:
            ends = list(itertools.accumulate((file.bytes for file in part.files), initial=0))
            reported = 0
            for document in reader:
                if isinstance(document, BadRecord):
                    steps.rejects.offer(
                        "read",
                        document.reason,
                        document.origin,
                        f"{document.detail}\n{document.excerpt}".strip(),
                    )
                    continue
                size = len(document.utf8)
                steps.funnel.count_document("read", document.text, size)
                if (kept := steps.judge(document)) is not None:
                    writer.add(kept)
                    if steps.keeps_best:
                        scores.append((steps.score, len(kept.utf8)))
                    if place is not None and (key := id_hash(kept, place)) is not None:
                        ids.append(key)
                # Packed text is larger than its file, and a table holds more than text. So text
                # moves the bar only within the share of its file, whose end corrects it.
                file = len(reader.files)
                now = min(ends[file], max(ends[file - 1], reported + size))
                advance(now - reported)
                reported = now
            advance(part.bytes - reported)
        if steps.keeps_best:
            save_scores(self.work, number, scores)
        elif place is not None:
            save_hashes(hashes_file(self.work, number), ids)
        read = steps.funnel.steps["read"]
        read.removed.update(reader.counts.removed)
        read.changed.update(reader.counts.changed)
        return CleanResult(
            funnel=steps.funnel.dump(),
            files=reader.files,
            rejects=steps.rejects.dump(),
            decontamination={} if steps.tally is None else steps.tally.to_json(),
            read=_counts_record(reader.counts),
            bad={reason: _example_record(record) for reason, record in reader.examples.items()},
            unsegmented=dict(steps.unsegmented),
        )


class _Steps:
    """Run the steps that follow reading, and count what they do."""

    def __init__(self, config: PrepareConfig, source: str, work: Path, below: int) -> None:
        self._source = source
        self._config = config
        self._chain = Chain(config.filters_of(source))
        self._index = (
            None
            if config.decontaminate is None
            else DecontaminationIndex.load(decontamination_index_file(work))
        )
        self._redactor = None if config.pii is None else Redactor(config.pii)
        later = [*(["decontaminate"] if self._index else []), *(["pii"] if self._redactor else [])]
        self.funnel = Funnel(["read", *self._chain.names, *later], below)
        self.rejects = Rejects(config.keep_rejects)
        self.keeps_best = self._chain.keep_best is not None
        """Whether a later stage keeps the best-scored documents."""
        self.score = 0.0
        """Score of the last document that was kept, by the filter whose best stay."""
        self._needs_segmenter = not has_segmenter() and counts_words(config, source)
        self.unsegmented: Counter[str] = Counter()
        """Language -> documents in which a segmenter was missing."""
        self.tally = None if self._index is None else DecontaminationTally()

    def judge(self, document: Document) -> Document | None:
        """Return the document as the steps leave it; None when one of them removes it."""
        if self._needs_segmenter and (language := language_without_spaces(document.text)):
            self.unsegmented[language] += 1
        outcome = self._chain(document)
        self.funnel.count_outcome(self._chain.names, outcome)
        if not outcome.kept:
            self.rejects.offer(
                outcome.removed_by, outcome.reason, outcome.document.origin, outcome.document.text
            )
            return None
        if self._chain.keep_best is not None:
            self.score = dict(outcome.scores)[self._chain.keep_best[0]]
        # Before redaction, which would change the words that evaluation items are looked up by.
        kept = self._decontaminate(outcome.document)
        return None if kept is None else self._redact(kept)

    def _decontaminate(self, document: Document) -> Document | None:
        if self._index is None or self.tally is None:
            return document
        assert self._config.decontaminate is not None
        hits = self._index.check(document.text)
        self.tally.add(self._source, document.origin, hits)
        kept = apply_action(document, hits, self._config.decontaminate)
        names = "+".join(sorted({hit.set for hit in hits}))
        if kept is None:
            self.funnel.steps["decontaminate"].removed[names] += 1
            self.rejects.offer("decontaminate", names, document.origin, document.text)
            return None
        if hits:
            self.funnel.steps["decontaminate"].changed[f"marked {names}"] += 1
        self.funnel.count_document("decontaminate", kept.text, len(kept.utf8))
        return kept

    def _redact(self, document: Document) -> Document:
        if self._redactor is None:
            return document
        text, counts = self._redactor(document.text)
        for kind in counts:
            self.funnel.steps["pii"].changed[f"with {kind}"] += 1
        if counts:
            document = dataclasses.replace(document, text=text)
        self.funnel.count_document("pii", document.text, len(document.utf8))
        return document


def apply_action(
    document: Document, hits: Sequence[DecontaminationHit], config: DecontaminateConfig
) -> Document | None:
    """Apply `decontaminate.action` to a document that holds evaluation items.

    Returns:
        None to remove it, or the document with the names of the sets in its field `contamination`.
    """
    if not hits:
        return document
    if config.action == "remove":
        return None
    names = ",".join(sorted({hit.set for hit in hits}))
    return dataclasses.replace(document, fields={**document.fields, "contamination": names})


def _counts_record(counts: ReadCounts) -> CountsRecord:
    """Write the counts of a reader as JSON; `_read_counts` is the inverse."""
    return CountsRecord(
        input_bytes=counts.input_bytes,
        records=counts.records,
        documents=counts.documents,
        bytes=counts.bytes,
        empty=dict(counts.empty),
        bad=dict(counts.bad),
        changed=dict(counts.changed),
        unread_bytes=counts.unread_bytes,
    )


def _example_record(record: BadRecord) -> ExampleRecord:
    """Write a record that could not be used as JSON."""
    return ExampleRecord(
        origin=record.origin,
        reason=record.reason,
        detail=record.detail,
        excerpt=record.excerpt,
        unread_bytes=record.unread_bytes,
    )


def _read_counts(raw: CountsRecord) -> ReadCounts:
    """Read the counts of a reader from JSON."""
    return ReadCounts(
        input_bytes=raw["input_bytes"],
        records=raw["records"],
        documents=raw["documents"],
        bytes=raw["bytes"],
        empty=Counter(raw["empty"]),
        bad=Counter(raw["bad"]),
        changed=Counter(raw["changed"]),
        unread_bytes=raw["unread_bytes"],
    )


def check_read(name: str, results: Iterable[CleanResult], limit: float) -> None:
    """Refuse a source if too many of its records could not be used.

    Args:
        name: Name of the source.
        results: Results of its parts, in order.
        limit: `max_bad_fraction`.

    Raises:
        UserError: More than that is bad.
    """
    counts = ReadCounts()
    examples: dict[str, BadRecord] = {}
    for result in results:
        counts += _read_counts(result["read"])
        for reason, record in result["bad"].items():
            examples.setdefault(reason, BadRecord(**record))
    check_bad(name, counts, examples, limit)


def decontamination_index_file(work: Path) -> Path:
    """Name the file with the index of the evaluation sets that tasks load."""
    return work / "decontamination_index.npz"
