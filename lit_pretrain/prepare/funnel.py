"""Funnel: documents, bytes and tokens that leave each step of a source, and the reasons for what stayed behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_pretrain.data.manifest import Step
from lit_pretrain.prepare.blocks import MOST, Sample, blocks
from lit_pretrain.prepare.filters.chain import Outcome

CUT = "cut"
"""Change of the step store: a document became several rows, which makes no token more."""

END_HELD_OUT = "end_held_out"
"""Change of the step store: a document is two or three in the splits, which makes one or two separators more."""


@dataclass
class StepCount:
    """One step while it is counted."""

    name: str
    documents: int = 0
    bytes: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    sample: Sample = field(default_factory=Sample)
    base: str = ""
    """Step whose sample this one's was taken out of; empty: it has its own."""

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "documents": self.documents,
            "bytes": self.bytes,
            "removed": dict(sorted(self.removed.items())),
            "changed": dict(sorted(self.changed.items())),
            "sample": list(self.sample),
            "base": self.base,
        }

    def same_text(self, before: StepCount) -> bool:
        """Whether it let through, unchanged, all that the step before it did."""
        return not +self.removed and not {what for what in +self.changed if what != CUT} and before.documents == self.documents


class Funnel:
    """The steps of one source, or of one part of it, in their order.

    Args:
        names: Of the steps.
        below: Hash below which a block of text counts for the samples (`blocks.threshold`); 0: no samples.
    """

    def __init__(self, names: Iterable[str], below: int = 0) -> None:
        self.steps = {name: StepCount(name) for name in names}
        self._below = below
        self._text, self._blocks = "", blocks("", 0)

    def passed(self, name: str, text: str, size: int) -> None:
        """A document left a step.

        Args:
            name: Of the step.
            text: As the step left it.
            size: Its UTF-8 bytes.
        """
        step = self.steps[name]
        if self._below:
            if text is not self._text:  # most steps leave a text as it is
                self._text, self._blocks = text, blocks(text, self._below)
            step.sample.update((key, block, step.documents) for key, block in self._blocks)
        step.documents += 1
        step.bytes += size

    def judged(self, names: Sequence[str], outcome: Outcome) -> None:
        """The filters of these names looked at a document."""
        for name, text, size in zip(names, outcome.texts, outcome.passed, strict=False):  # a removed one passed only the first of them
            self.passed(name, text, size)
        for name, what in outcome.changed:
            self.steps[name].changed[what] += 1
        if not outcome.kept:
            self.steps[outcome.removed_by].removed[outcome.reason] += 1

    def dump(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [step.dump() for step in self.steps.values()]

    def add(self, dumped: Iterable[Mapping[str, Any]]) -> None:
        """Adds what another part counted."""
        for raw in dumped:
            step = self.steps.setdefault(raw["name"], StepCount(raw["name"]))
            step.documents += raw["documents"]
            step.bytes += raw["bytes"]
            step.removed.update(raw["removed"])
            step.changed.update(raw["changed"])
            step.sample.update(raw["sample"])
            step.base = raw["base"]

    def record(self, count: Callable[[str], int], separators: int, stored: int) -> tuple[Step, ...]:
        """As the manifest holds it.

        Tokens are exact for the last step, and for those before it after which nothing was removed or changed. For the others they are
        the bytes times the tokens per byte of the step's own sample, and the separators.

        Args:
            count: Tokens of a text.
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
                    # Without a sample (a step that took nearly all of a huge source) what is left at the end must serve.
                    ratio = sum(map(count, sample)) / size if size else tokens / max(1, after.bytes)
                    tokens, estimated = round(step.bytes * ratio) + separators * step.documents, True
            found.append(
                Step(
                    name=step.name,
                    documents=step.documents,
                    bytes=step.bytes,
                    tokens=tokens,
                    tokens_estimated=estimated,
                    removed=dict(sorted(step.removed.items())),
                    changed=dict(sorted(step.changed.items())),
                )
            )
            after = step
        return tuple(reversed(found))

    def _sample(self, step: StepCount) -> list[str]:
        """The texts of a step's sample. One that was taken out of another is cut where that one is full, wherever its parts were cut."""
        highest = [key for key, _, _ in self.steps[step.base].sample] if step.base else []
        cut = highest[-1] if len(highest) == MOST else 2**64
        return [text for key, text, _ in step.sample if key < cut]


def without(
    step: Mapping[str, Any], name: str, documents: int, size: int, gone: Collection[int], removed: Mapping[str, int]
) -> dict[str, Any]:
    """The dumped step of a part that follows another one and takes documents out.

    Args:
        step: The one before.
        name: Of the new one.
        documents: Left.
        size: UTF-8 bytes left.
        gone: Numbers of the documents taken out, among those that left the step before.
        removed: Reason -> documents taken out.
    """
    sample = [block for block in step["sample"] if block[2] not in gone]
    base = step["base"] or step["name"]
    return {"name": name, "documents": documents, "bytes": size, "removed": dict(removed), "changed": {}, "sample": sample, "base": base}
