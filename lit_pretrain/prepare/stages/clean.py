"""Clean: everything that looks at one document at a time, from the raw files of a part to
documents worth comparing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.decontaminate.contamination import ContaminationTally
from lit_pretrain.decontaminate.index import ContaminationHit, DecontaminateConfig, Index
from lit_pretrain.prepare.document_store import Document, DocumentWriter
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.filters.load import Chain
from lit_pretrain.prepare.funnel import Funnel, Rejects, block_threshold
from lit_pretrain.prepare.inputs import Part
from lit_pretrain.prepare.pii.redact import Redactor
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.read import BadRecord, ReadCounts, Reader, ReadPolicy, check_bad
from lit_pretrain.prepare.stages.ids import hashes_file, id_hash, save_hashes, with_ids_file
from lit_pretrain.prepare.survivors import clean_file

# Contamination: what becomes of a document that holds what a model will be examined on.


def removed_or_marked(
    document: Document, hits: Sequence[ContaminationHit], config: DecontaminateConfig
) -> Document | None:
    """The document under the config's action: None to remove it, or with the names of the sets
    in its field `contamination`.
    """
    if not hits:
        return document
    if config.action == "remove":
        return None
    names = ",".join(sorted({hit.set for hit in hits}))
    return dataclasses.replace(document, fields={**document.fields, "contamination": names})


@dataclass(frozen=True)
class CleanTask:
    """Reads one part: read → filters → decontaminate → pii."""

    config: PrepareConfig
    parts: tuple[Part, ...]
    work: Path

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes clean/<number>.parquet, or what `tasks.ids` needs where documents have ids.

        Returns:
            The funnel of the part, samples of what it left behind, hits of evaluation sets, and the
            hashes of its files.
        """
        part, config = self.parts[number], self.config
        pass_ = _Pass(
            config,
            part.source,
            self.work,
            block_threshold(
                sum(other.bytes for other in self.parts if other.source == part.source)
            ),
        )
        policy = ReadPolicy(config.errors, config.too_large, config.max_document_bytes)
        reader = Reader(
            config.sources[part.source], part.files, policy, self.work / "fetched" / f"{number:05d}"
        )
        place = list(config.sources).index(part.source) if has_ids(config, part.source) else None
        ids: list[int] = []
        with DocumentWriter(
            clean_file(self.work, number) if place is None else with_ids_file(self.work, number)
        ) as writer:
            ends, told = (
                list(itertools.accumulate((file.bytes for file in part.files), initial=0)),
                0,
            )
            for document in reader:
                if isinstance(document, BadRecord):
                    pass_.rejects.offer(
                        "read",
                        document.reason,
                        document.origin,
                        f"{document.detail}\n{document.excerpt}".strip(),
                    )
                    continue
                size = len(document.utf8)
                pass_.funnel.passed("read", document.text, size)
                if (kept := pass_.judge(document)) is not None:
                    writer.add(kept)
                    if place is not None and (key := id_hash(kept, place)) is not None:
                        ids.append(key)
                # Packed text is more than its file, and there is more in a table than text: what
                # counts is the file, once it is done.
                file = len(reader.files)
                now = min(ends[file], max(ends[file - 1], told + size))
                advance(now - told)
                told = now
            advance(part.bytes - told)
        if place is not None:
            save_hashes(hashes_file(self.work, number), ids)
        read = pass_.funnel.steps["read"]
        read.removed.update(reader.counts.removed)
        read.changed.update(reader.counts.changed)
        return {
            "funnel": pass_.funnel.dump(),
            "files": reader.files,
            "rejects": pass_.rejects.dump(),
            "gate": pass_.tally.to_json(),
            "read": {
                name: dict(value) if isinstance(value, Counter) else value
                for name, value in vars(reader.counts).items()
            },
            "bad": {
                reason: dataclasses.asdict(record) for reason, record in reader.examples.items()
            },
        }


class _Pass:
    """The steps that follow reading, with what they count."""

    def __init__(self, config: PrepareConfig, source: str, work: Path, below: int) -> None:
        self._source = source
        self._config = config
        self._chain = Chain(config.filters_of(source))
        self._index = None if config.decontaminate is None else Index.load(gate_file(work))
        self._redactor = None if config.pii is None else Redactor(config.pii)
        later = [*(["decontaminate"] if self._index else []), *(["pii"] if self._redactor else [])]
        self.funnel = Funnel(["read", *self._chain.names, *later], below)
        self.rejects = Rejects(config.keep_rejects)
        self.tally = ContaminationTally()

    def judge(self, document: Document) -> Document | None:
        """The document as the steps leave it, None when one of them removes it."""
        outcome = self._chain(document)
        self.funnel.judged(self._chain.names, outcome)
        if not outcome.kept:
            self.rejects.offer(
                outcome.removed_by, outcome.reason, outcome.document.origin, outcome.document.text
            )
            return None
        kept = self._decontaminate(outcome.document)
        return None if kept is None else self._redact(kept)

    def _decontaminate(self, document: Document) -> Document | None:
        if self._index is None:
            return document
        assert self._config.decontaminate is not None
        hits = self._index.check(document.text)
        self.tally.add(self._source, document.origin, hits)
        kept = removed_or_marked(document, hits, self._config.decontaminate)
        names = "+".join(sorted({hit.set for hit in hits}))
        if kept is None:
            self.funnel.steps["decontaminate"].removed[names] += 1
            self.rejects.offer("decontaminate", names, document.origin, document.text)
            return None
        if hits:
            self.funnel.steps["decontaminate"].changed[f"marked {names}"] += 1
        self.funnel.passed("decontaminate", kept.text, len(kept.utf8))
        return kept

    def _redact(self, document: Document) -> Document:
        if self._redactor is None:
            return document
        text, counts = self._redactor(document.text)
        for kind in counts:
            self.funnel.steps["pii"].changed[f"with {kind}"] += 1
        if counts:
            document = dataclasses.replace(document, text=text)
        self.funnel.passed("pii", document.text, len(document.utf8))
        return document


def has_ids(config: PrepareConfig, source: str) -> bool:
    """Whether the documents of a source are told apart by an id."""
    return "id" in config.sources[source].fields


def check_read(name: str, results: Iterable[dict[str, Any]], limit: float) -> None:
    """Refuses a source too much of which could not be used.

    Args:
        name: The source's.
        results: Of its parts, in order.
        limit: `max_bad_fraction`.

    Raises:
        UserError: More is bad.
    """
    counts = ReadCounts()
    examples: dict[str, BadRecord] = {}
    for result in results:
        raw = result["read"]
        counts += ReadCounts(
            **{**raw, **{name: Counter(raw[name]) for name in ("empty", "bad", "changed")}}
        )
        for reason, record in result["bad"].items():
            examples.setdefault(reason, BadRecord(**record))
    check_bad(name, counts, examples, limit)


def gate_file(work: Path) -> Path:
    """Where the index of the evaluation sets lies while tasks run."""
    return work / "gate.npz"
