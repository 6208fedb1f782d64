"""Funnel: documents, bytes and tokens that pass each step of a source, and why the others did not.

Tokens are estimated from a sample of the text that passed a step: texts are cut into blocks of
2 KiB, and the blocks with the smallest hashes are kept. So every byte has the same chance,
documents count by their size, and the sample depends neither on the order of the documents nor on
the parts. Rejected documents are sampled likewise, for a person to read.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypedDict

import xxhash
from typing_extensions import NotRequired

from lit_pretrain.corpus.manifest import Step
from lit_pretrain.prepare.filters.filter import Outcome

BLOCK_BYTES = 2048
"""Size of a block. A cut may split a word, which adds one token to about 500."""
MOST = 64
"""Most blocks of a sample: 128 KiB. If blocks differ by 15 % in their bytes per token, the mean of
64 is right to 2 %.
"""
_SLACK = 16
"""How many times the blocks that a sample needs have hashes that count, so that enough are left
after a step that removes most of a source.
"""

TextBlock: TypeAlias = tuple[int, str, int]
"""Hash, text, number of the document among those of the part that left the step."""


def block_threshold(total_bytes: int) -> int:
    """Compute the hash below which a block of a source of this size may count.

    The threshold bounds how much the parts of a large source write.
    """
    return round(min(1.0, _SLACK * MOST * BLOCK_BYTES / max(1, total_bytes)) * 2**64)


def blocks(text: str, below: int) -> list[tuple[int, str]]:
    """List the hash and text of the blocks whose hash lies below a threshold."""
    utf8 = memoryview(text.encode())
    found = []
    for begin in range(0, len(utf8), BLOCK_BYTES):
        block = utf8[begin : begin + BLOCK_BYTES]
        key = xxhash.xxh3_64_intdigest(block)
        if key < below:
            # A character that the cut divides is left out.
            found.append((key, bytes(block).decode(errors="ignore")))
    return found


class BlockSample:
    """Keep the blocks with the smallest hashes."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, int]] = []  # (-hash, text, -document)

    def offer(self, block: TextBlock) -> None:
        """Consider a block."""
        entry = (-block[0], block[1], -block[2])
        if len(self._heap) < MOST:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def update(self, found: Iterable[TextBlock]) -> None:
        """Consider several blocks."""
        for key, text, document in found:
            self.offer((key, text, document))

    def __iter__(self) -> Iterator[TextBlock]:
        """Yield the blocks by hash."""
        for key, text, document in sorted(self._heap, reverse=True):
            yield -key, text, -document


REJECTS_FILENAME = "rejects.jsonl"
_TEXT_CHARACTERS = 2_000
"""Characters kept of a rejected document."""


class RejectRecord(TypedDict):
    """A rejected document as JSON; with its source, a line of rejects.jsonl."""

    step: str
    reason: str
    origin: str
    text: str
    duplicate_of: NotRequired[DuplicateOf]
    """Of a duplicate: the document that stays for it."""


class DuplicateOf(TypedDict):
    """The document that stays for a duplicate, in rejects.jsonl."""

    source: str
    origin: str
    similarity: float
    """Jaccard similarity; of a contained document, the share of its shingles in the other."""
    text: str


def excerpt(text: str) -> str:
    """Return the beginning of a text, as rejects.jsonl shows it."""
    return text[:_TEXT_CHARACTERS]


def reject_record(step: str, reason: str, origin: str, text: str) -> RejectRecord:
    """Record a rejected document, with the beginning of its text."""
    return RejectRecord(step=step, reason=reason, origin=origin, text=excerpt(text))


class Rejects:
    """Keep a sample of fixed size per step and reason: the documents with the smallest hashes.

    The order in which they are offered makes no difference.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._heaps: dict[tuple[str, str], list[tuple[int, str, str]]] = {}

    def offer(self, step: str, reason: str, origin: str, text: str) -> None:
        """Consider a rejected document."""
        if not self._keep:
            return
        content = f"{origin}\0{excerpt(text)}".encode(errors="replace")
        key = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        heap = self._heaps.setdefault((step, reason), [])
        entry = (-key, origin, excerpt(text))
        if len(heap) < self._keep:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)

    def dump(self) -> list[RejectRecord]:
        """List the documents by step and reason."""
        return [
            reject_record(step, reason, origin, text)
            for (step, reason), heap in sorted(self._heaps.items())
            for _, origin, text in sorted(heap, reverse=True)
        ]

    def add(self, dumped: Iterable[RejectRecord]) -> None:
        """Consider what another part kept."""
        for entry in dumped:
            self.offer(entry["step"], entry["reason"], entry["origin"], entry["text"])


SCORE_BINS = 20
"""Bins of equal width into which scores from 0 to 1 are counted."""


def score_bin(score: float) -> int:
    """Return the number of the bin of a score."""
    return min(SCORE_BINS - 1, max(0, int(score * SCORE_BINS)))


def score_histogram(scores: Iterable[float]) -> list[int]:
    """Count scores in bins."""
    counts = [0] * SCORE_BINS
    for score in scores:
        counts[score_bin(score)] += 1
    return counts


def score_bars(counts: Sequence[int]) -> str:
    """Draw a histogram in one line; a bin that is not empty has at least the lowest bar."""
    most = max(counts, default=0)
    return "".join("▁▂▃▄▅▆▇█"[min(7, 8 * count // most)] if count else "·" for count in counts)


CUT = "cut"
"""Change of the step store: a document became several rows, which adds no token."""

END_HELD_OUT = "end_held_out"
"""Change of the step store: a document became two or three in the splits, which adds one or two
separators.
"""


class StepRecord(TypedDict):
    """The `StepCount` of a part as JSON."""

    name: str
    documents: int
    bytes: int
    removed: dict[str, int]
    changed: dict[str, int]
    sample: list[TextBlock]
    base: str
    scores: NotRequired[list[int]]


@dataclass
class StepCount:
    """What passed one step, and why the rest did not."""

    name: str
    documents: int = 0
    bytes: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    sample: BlockSample = field(default_factory=BlockSample)
    base: str = ""
    """Step whose sample contains this step's sample; empty if the step has its own."""
    scores: list[int] = field(default_factory=list)
    """Histogram of the scores that the step gave, to documents that it removed, too; empty if it
    gave none.
    """

    def dump(self) -> StepRecord:
        """Write the step as JSON."""
        return StepRecord(
            name=self.name,
            documents=self.documents,
            bytes=self.bytes,
            removed=dict(sorted(self.removed.items())),
            changed=dict(sorted(self.changed.items())),
            sample=list(self.sample),
            base=self.base,
            scores=self.scores,
        )

    def add_score(self, score: float) -> None:
        """Count the score of a document."""
        if not self.scores:
            self.scores = [0] * SCORE_BINS
        self.scores[score_bin(score)] += 1

    def add_scores(self, counts: Sequence[int]) -> None:
        """Add a histogram of scores; an empty one changes nothing."""
        if counts:
            self.scores = [
                a + b for a, b in zip(self.scores or [0] * SCORE_BINS, counts, strict=True)
            ]

    def same_text(self, before: StepCount) -> bool:
        """Check whether all documents of the step before passed, and unchanged."""
        return (
            not +self.removed
            and not {what for what in +self.changed if what != CUT}
            and before.documents == self.documents
        )


class Funnel:
    """Count the steps of one source, or of one part of it, in their order.

    Args:
        names: Names of the steps.
        below: Hash below which a block of text counts for the samples (`block_threshold`); 0 for
            no samples.
    """

    def __init__(self, names: Iterable[str], below: int = 0) -> None:
        self.steps = {name: StepCount(name) for name in names}
        self._below = below
        self._text, self._blocks = "", blocks("", 0)

    def count_document(self, name: str, text: str, size: int) -> None:
        """Count a document that passed a step.

        Args:
            name: Name of the step.
            text: The text as the step left it.
            size: Its UTF-8 bytes.
        """
        step = self.steps[name]
        if self._below:
            if text is not self._text:  # most steps leave a text as it is
                self._text, self._blocks = text, blocks(text, self._below)
            step.sample.update((key, block, step.documents) for key, block in self._blocks)
        step.documents += 1
        step.bytes += size

    def count_outcome(self, names: Sequence[str], outcome: Outcome) -> None:
        """Count the outcome of the filters of these names for a document."""
        # A document that was removed passed only the first of them.
        for name, text, size in zip(names, outcome.texts, outcome.passed, strict=False):
            self.count_document(name, text, size)
        for name, what in outcome.changed:
            self.steps[name].changed[what] += 1
        for name, score in outcome.scores:
            self.steps[name].add_score(score)
        if not outcome.kept:
            self.steps[outcome.removed_by].removed[outcome.reason] += 1

    def dump(self) -> list[StepRecord]:
        """Write the steps as JSON."""
        return [step.dump() for step in self.steps.values()]

    def add(self, dumped: Iterable[StepRecord]) -> None:
        """Add what another part counted."""
        for raw in dumped:
            step = self.steps.setdefault(raw["name"], StepCount(raw["name"]))
            step.documents += raw["documents"]
            step.bytes += raw["bytes"]
            step.removed.update(raw["removed"])
            step.changed.update(raw["changed"])
            step.sample.update(raw["sample"])
            step.base = raw["base"]
            step.add_scores(raw.get("scores", []))

    def record(self, count: Callable[[str], int], separators: int, stored: int) -> tuple[Step, ...]:
        """Write the steps as the manifest holds them.

        Tokens are exact for the last step, and for those before it after which nothing was removed
        or changed. For the others they are the bytes times the tokens per byte of the step's own
        sample, plus the separators.

        Args:
            count: Counts the tokens of a text.
            separators: Tokens that every document has besides its text.
            stored: Tokens of the last step.
        """
        found: list[Step] = []
        after: StepCount | None = None
        for step in reversed(self.steps.values()):
            tokens, estimated = stored, False
            if after is not None:
                tokens, estimated = found[-1].tokens, found[-1].tokens_estimated
                if not after.same_text(step):
                    sample = self._sample(step)
                    size = sum(len(text.encode()) for text in sample)
                    # A step that removed nearly all of a huge source leaves no sample; then the
                    # ratio of the last step is used.
                    ratio = sum(map(count, sample)) / size if size else tokens / max(1, after.bytes)
                    tokens, estimated = (
                        round(step.bytes * ratio) + separators * step.documents,
                        True,
                    )
            found.append(
                Step(
                    name=step.name,
                    documents=step.documents,
                    bytes=step.bytes,
                    tokens=tokens,
                    tokens_estimated=estimated,
                    removed=dict(sorted(step.removed.items())),
                    changed=dict(sorted(step.changed.items())),
                    scores=tuple(step.scores),
                )
            )
            after = step
        return tuple(reversed(found))

    def _sample(self, step: StepCount) -> list[str]:
        """List the texts of a step's sample.

        A sample that is a part of another one ends where that one is full, wherever its parts
        ended.
        """
        highest = [key for key, _, _ in self.steps[step.base].sample] if step.base else []
        cut = highest[-1] if len(highest) == MOST else 2**64
        return [text for key, text, _ in step.sample if key < cut]


def step_after_removal(
    step: StepRecord,
    name: str,
    *,
    documents: int,
    size: int,
    gone: Collection[int],
    removed: Mapping[str, int],
) -> StepRecord:
    """Record a step of a part that removes documents after another step.

    Args:
        step: The step before.
        name: Name of the new step.
        documents: Documents that are left.
        size: UTF-8 bytes that are left.
        gone: Numbers of the removed documents, among those that passed the step before.
        removed: Reason -> documents that were removed.
    """
    return StepRecord(
        name=name,
        documents=documents,
        bytes=size,
        removed=dict(removed),
        changed={},
        sample=[block for block in step["sample"] if block[2] not in gone],
        base=step["base"] or step["name"],
    )
