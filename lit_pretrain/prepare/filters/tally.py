"""Tally: what the filters of one source let through, removed and changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_pretrain.data.manifest import Step
from lit_pretrain.prepare.filters.chain import Outcome


@dataclass(slots=True)
class _Counts:
    documents: int = 0
    bytes: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


class Tally:
    """Counts outcomes of one chain; tallies of parts of a source add up to that of the whole.

    Args:
        names: `Chain.names`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._counts = {name: _Counts() for name in names}

    def add(self, outcome: Outcome) -> None:
        """Counts one document."""
        for counts, size in zip(self._counts.values(), outcome.passed, strict=False):  # a removed one passed only the first of them
            counts.documents += 1
            counts.bytes += size
        for name, what in outcome.changed:
            self._counts[name].changed[what] += 1
        if outcome.removed_by:
            self._counts[outcome.removed_by].removed[outcome.reason] += 1

    def merge(self, other: Tally) -> None:
        """Adds the counts of another part."""
        assert self._counts.keys() == other._counts.keys(), f"{list(self._counts)} and {list(other._counts)} are other filters"
        for name, counts in self._counts.items():
            more = other._counts[name]
            counts.documents += more.documents
            counts.bytes += more.bytes
            counts.removed.update(more.removed)
            counts.changed.update(more.changed)

    def steps(self) -> tuple[Step, ...]:
        """One step of the funnel per filter, in their order."""
        return tuple(
            Step(
                name=name,
                documents=counts.documents,
                bytes=counts.bytes,
                removed=dict(sorted(counts.removed.items())),
                changed=dict(sorted(counts.changed.items())),
            )
            for name, counts in self._counts.items()
        )
