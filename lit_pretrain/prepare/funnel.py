"""Funnel: documents and bytes that leave each step of a source, and the reasons for what stayed behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_pretrain.data.manifest import Step
from lit_pretrain.prepare.filters.chain import Outcome


@dataclass
class StepCount:
    """One step while it is counted."""

    name: str
    documents: int = 0
    bytes: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def step(self) -> Step:
        """As the manifest holds it."""
        return Step(
            name=self.name,
            documents=self.documents,
            bytes=self.bytes,
            removed=dict(sorted(self.removed.items())),
            changed=dict(sorted(self.changed.items())),
        )


class Funnel:
    """The steps of one source, or of one part of it, in their order."""

    def __init__(self, names: Iterable[str]) -> None:
        self.steps = {name: StepCount(name) for name in names}

    def passed(self, name: str, size: int) -> None:
        """A document of `size` bytes left a step."""
        step = self.steps[name]
        step.documents += 1
        step.bytes += size

    def judged(self, names: Sequence[str], outcome: Outcome) -> None:
        """The filters of these names looked at a document."""
        for name, size in zip(names, outcome.passed, strict=False):  # a removed one passed only the first of them
            self.passed(name, size)
        for name, what in outcome.changed:
            self.steps[name].changed[what] += 1
        if not outcome.kept:
            self.steps[outcome.removed_by].removed[outcome.reason] += 1

    def dump(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [vars(step.step()) for step in self.steps.values()]

    def add(self, dumped: Iterable[dict[str, Any]]) -> None:
        """Adds what another part counted."""
        for raw in dumped:
            step = self.steps.setdefault(raw["name"], StepCount(raw["name"]))
            step.documents += raw["documents"]
            step.bytes += raw["bytes"]
            step.removed.update(raw["removed"])
            step.changed.update(raw["changed"])

    def record(self) -> tuple[Step, ...]:
        """As the manifest holds it."""
        return tuple(step.step() for step in self.steps.values())
