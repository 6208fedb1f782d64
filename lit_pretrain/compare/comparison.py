"""Comparison: configs, each with the runs of its seeds, on the same documents, in pairs.

Axes: K seeds, U units (documents, or blocks of long ones), C classes of a view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from lit_pretrain.compare.intervals import (
    Counts,
    Interval,
    interval_over_seeds,
    paired_interval,
    resampled_counts,
    unpaired_half_width,
)
from lit_pretrain.compare.spans import (
    TICK,
    VIEWS,
    DocumentSpans,
    document_spans,
    in_nats,
    span_ticks,
)

if TYPE_CHECKING:
    from lit_pretrain.compare.held_out_documents import DocumentLosses, HeldOutDocument

FEW_DOCUMENTS = 20
"""A source with fewer documents is resampled in blocks of them."""
BLOCK_BYTES = 2048
Unit = Literal["nats per token", "bits per byte"]


@dataclass(frozen=True)
class DifferencePart:
    """The part that one class of spans has in a difference."""

    name: str
    share: float
    """Of all spans."""
    nats: float
    """Summed difference over all documents, in nats; those of a view add up to the whole exactly.
    """
    interval: Interval
    """Of the part, in the unit of the comparison: the values of a view add up to the difference."""


@dataclass(frozen=True)
class Against:
    """One config against the baseline."""

    name: str
    seeds: int
    loss: float
    """In the unit of the comparison, mean over the seeds."""
    over_seeds: tuple[float, float] | None
    """95 % interval of that mean for other seeds on these documents; None for one seed."""
    bits_per_byte: float
    nats: float
    """Summed difference over all documents, in nats, mean over the seeds."""
    difference: Interval
    unpaired: float | None
    """Half the width of the interval if nothing were paired."""
    sources: dict[str, Interval]
    views: dict[str, list[DifferencePart]]


@dataclass(frozen=True)
class DocumentComparison:
    """All configs against the baseline, on the same documents."""

    unit: Unit
    baseline: str
    documents: int
    tokens: int
    """Targets of the baseline's tokenizer."""
    bytes: int
    blocks: list[str]
    """Sources of few documents, which are resampled in blocks."""
    sources: dict[str, int]
    """Source -> documents."""
    configs: list[Against] = field(default_factory=list)

    @property
    def best(self) -> Against:
        """The config with the lowest loss; of equal ones the first."""
        return min(self.configs, key=lambda config: config.loss)


@dataclass(frozen=True)
class Candidate:
    """One config: the losses of its runs, which differ in nothing but seeds."""

    name: str
    seeds: Sequence[object]
    """What tells its runs apart; the same values pair them with those of another config."""
    losses: Sequence[DocumentLosses]


def compare(
    documents: Sequence[HeldOutDocument],
    candidates: Sequence[Candidate],
    *,
    resamples: int,
    seed: int,
) -> DocumentComparison:
    """Compare configs with the first of them.

    Args:
        documents: What all runs were measured on.
        candidates: The configs, the baseline first.
        resamples: Of the bootstrap; 0 for no intervals.
        seed: Of the bootstrap.
    """
    runs = [losses for candidate in candidates for losses in candidate.losses]
    of_tokenizer = {losses.tokenizer_hash: losses for losses in runs}
    cut = _Cut(documents, list(of_tokenizer.values()))
    tokens_U = cut.sums([np.ones(len(n)) for n in runs[0].nats], runs[0])
    same = len(of_tokenizer) == 1
    weight_U = tokens_U if same else cut.bytes_U * math.log(2)
    totals = [[cut.classed(losses) for losses in candidate.losses] for candidate in candidates]
    counts = resampled_counts(cut.source_U, resamples, seed) if resamples else None
    found = DocumentComparison(
        unit="nats per token" if same else "bits per byte",
        baseline=candidates[0].name,
        documents=len(documents),
        tokens=int(tokens_U.sum()),
        bytes=int(cut.bytes_U.sum()),
        blocks=cut.blocks,
        sources={s: sum(d.source == s for d in documents) for s in cut.sources},
    )
    for candidate, classed in zip(candidates, totals, strict=True):
        found.configs.append(
            _against(candidate, classed, candidates[0], totals[0], cut, weight_U, counts)
        )
    return found


class _Cut:
    """Documents cut into spans, and spans gathered into the units of the bootstrap."""

    def __init__(
        self, documents: Sequence[HeldOutDocument], tokenizers: Sequence[DocumentLosses]
    ) -> None:
        self.documents = documents
        self.sources = list(dict.fromkeys(document.source for document in documents))
        counts = {s: sum(d.source == s for d in documents) for s in self.sources}
        self.blocks = [s for s, count in counts.items() if count < FEW_DOCUMENTS]
        self.spans: list[DocumentSpans] = []
        self.units: list[npt.NDArray[np.int64]] = []
        source_U: list[int] = []
        for number, document in enumerate(documents):
            ends = [losses.ends[number] for losses in tokenizers]
            spans = document_spans(document.text, ends, whole=document.whole)
            inside = np.zeros(len(spans.cuts), dtype=np.int64)
            if document.source in self.blocks:
                begins = np.concatenate([np.zeros(1, np.int64), spans.cuts[:-1]])
                # What is left of a document is no block of its own.
                most = max(1, spans.bytes // BLOCK_BYTES)
                inside = np.minimum(begins // BLOCK_BYTES, most - 1)
            self.spans.append(spans)
            self.units.append(inside + len(source_U))
            source_U += [self.sources.index(document.source)] * (int(inside.max(initial=0)) + 1)
        self.source_U = np.array(source_U)
        self.bytes_U = np.zeros(len(source_U))
        for spans, units in zip(self.spans, self.units, strict=True):
            lengths = np.diff(spans.cuts, prepend=0)
            np.add.at(self.bytes_U, units, lengths)
        self.classes = tuple(
            np.concatenate([spans.classes[v] for spans in self.spans]) for v in range(len(VIEWS))
        )

    def sums(
        self, values: Sequence[npt.NDArray[np.float64]], losses: DocumentLosses
    ) -> npt.NDArray[np.float64]:
        """Sum values of targets by unit; an end counts for the unit that it ends."""
        found = np.zeros(len(self.source_U))
        for spans, units, each, ends in zip(
            self.spans, self.units, values, losses.ends, strict=True
        ):
            places = np.searchsorted(spans.cuts, ends) if spans.aligned else np.zeros(len(ends))
            places = np.append(places, [len(spans.cuts) - 1] * (len(each) - len(ends)))
            np.add.at(found, units[places.astype(np.int64)], each)
        return found

    def classed(self, losses: DocumentLosses) -> list[npt.NDArray[np.int64]]:
        """Sum a run's losses by unit and class: for each view (U, C), in ticks."""
        ticks = [
            span_ticks(spans, nats, ends)
            for spans, nats, ends in zip(self.spans, losses.nats, losses.ends, strict=True)
        ]
        found = []
        for v, view in enumerate(VIEWS):
            table_UC = np.zeros((len(self.source_U), len(view.classes)), dtype=np.int64)
            for spans, units, each in zip(self.spans, self.units, ticks, strict=True):
                np.add.at(table_UC, (units, spans.classes[v]), each)
            found.append(table_UC)
        return found


def _against(
    candidate: Candidate,
    classed: Sequence[Sequence[npt.NDArray[np.int64]]],
    baseline: Candidate,
    base_classed: Sequence[Sequence[npt.NDArray[np.int64]]],
    cut: _Cut,
    weight_U: npt.NDArray[np.float64],
    counts: Counts | None,
) -> Against:
    """Compare one config with the baseline."""
    order, matched = _matched(candidate.seeds, baseline.seeds)
    classed = [classed[i] for i in order]
    one_ticks_KU, other_ticks_KU = (
        np.stack([views[0].sum(axis=1) for views in runs]) for runs in (classed, base_classed)
    )
    one_KU, other_KU = one_ticks_KU * TICK, other_ticks_KU * TICK
    total = float(weight_U.sum())
    sources = {}
    for number, source in enumerate(cut.sources):
        inside = cut.source_U == number
        sources[source] = paired_interval(
            one_KU[:, inside],
            other_KU[:, inside],
            weight_U[inside],
            None if counts is None else counts[:, inside],
            matched=matched,
        )
    views = {}
    for v, view in enumerate(VIEWS):
        parts = []
        spans = len(cut.classes[v])
        for c, name in enumerate(view.classes):
            share = float(np.count_nonzero(cut.classes[v] == c)) / spans
            if not share:
                continue
            one, other = (np.stack([r[v][:, c] for r in runs]) for runs in (classed, base_classed))
            nats, others = (ticks.astype(np.float64) * TICK for ticks in (one, other))
            interval = paired_interval(nats, others, weight_U, counts, matched=matched)
            parts.append(DifferencePart(name, share, _mean_nats(one, other), interval))
        views[view.title] = parts
    return Against(
        name=candidate.name,
        seeds=len(classed),
        loss=float(one_KU.mean(axis=0).sum() / total),
        over_seeds=interval_over_seeds(one_KU.sum(axis=1) / total),
        bits_per_byte=float(one_KU.mean(axis=0).sum() / cut.bytes_U.sum() / math.log(2)),
        nats=_mean_nats(one_ticks_KU, other_ticks_KU),
        difference=paired_interval(one_KU, other_KU, weight_U, counts, matched=matched),
        unpaired=None if counts is None else unpaired_half_width(one_KU, other_KU, weight_U),
        sources=sources,
        views=views,
    )


def _mean_nats(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    """Subtract summed losses, each the mean over its seeds; exact for one seed."""
    if len(one) == len(other):
        return in_nats(int(one.sum()) - int(other.sum())) / len(one)
    return in_nats(int(one.sum())) / len(one) - in_nats(int(other.sum())) / len(other)


def _matched(one: Sequence[object], other: Sequence[object]) -> tuple[list[int], bool]:
    """Put the seeds of one config into the order of the other's, if they are the same."""
    words, others = [repr(seed) for seed in one], [repr(seed) for seed in other]
    if sorted(words) == sorted(others) and len(set(words)) == len(words):
        return [words.index(seed) for seed in others], True
    return list(range(len(words))), False


def as_record(comparison: DocumentComparison) -> Mapping[str, object]:
    """Write a comparison as plain values, for JSON."""

    def interval(found: Interval) -> dict[str, object]:
        ends = None if found.low is None else [found.low, found.high]
        return {"difference": found.value, "ci95": ends, "verdict": found.verdict}

    return {
        "unit": comparison.unit,
        "baseline": comparison.baseline,
        "documents": comparison.documents,
        "tokens": comparison.tokens,
        "bytes": comparison.bytes,
        "sources": comparison.sources,
        "in_blocks": comparison.blocks,
        "configs": {
            c.name: {
                "best": c is comparison.best,
                "seeds": c.seeds,
                "loss": c.loss,
                "ci95_over_seeds": c.over_seeds,
                "bits_per_byte": c.bits_per_byte,
                "nats": c.nats,
                **interval(c.difference),
                "unpaired_half_width": c.unpaired,
                "sources": {name: interval(i) for name, i in c.sources.items()},
                "spans": {
                    title: {
                        part.name: {
                            "share_of_spans": part.share,
                            "nats": part.nats,
                            **interval(part.interval),
                        }
                        for part in parts
                    }
                    for title, parts in c.views.items()
                },
            }
            for c in comparison.configs
        },
    }
