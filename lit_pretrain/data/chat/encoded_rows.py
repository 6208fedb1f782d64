"""Encoded rows: read all rows of post-training data, compare them with evaluation sets, encode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_pretrain.chat.messages import (
    BadRow,
    TrainingRow,
)
from lit_pretrain.data.chat.row_source import (
    ROW_SPLITS,
    OnBadRow,
    RowSource,
    RowSplit,
    RowTally,
    drop_row,
    read_source,
)
from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.evaluation_set import (
    DecontaminateConfig,
    DecontaminationRecord,
    DecontaminationTally,
    EvaluationSet,
    decontamination_records,
)
from lit_pretrain.errors import UserError


class RowDecontamination:
    """Looks for evaluation items in rows and counts them, as `prepare` does with documents.

    Args:
        config: The evaluation sets, and what to do with a row that holds an item.

    Raises:
        UserError: The config is wrong, or a set cannot be read.
    """

    def __init__(self, config: DecontaminateConfig) -> None:
        self.config = config
        self.index = DecontaminationIndex.build(config)
        self.tally = DecontaminationTally()

    @property
    def identity(self) -> list[str]:
        """What decides which rows stay; part of the identity of the data."""
        return [self.index.hash, self.config.action]

    def check(self, source: str, origin: str, row: TrainingRow) -> bool:
        """Count the items that a row holds.

        Args:
            source: Name of its source.
            origin: File and number of the row.
            row: The row.

        Returns:
            Whether the row holds an item.

        Raises:
            BadRow: The row holds an item, and the config removes such rows.
        """
        hits = self.index.check(row.text())
        self.tally.add(source, origin, hits)
        if hits and self.config.action == "remove":
            names = ", ".join(sorted({hit.set for hit in hits}))
            raise BadRow(
                "contaminated",
                f"the row holds an item of {names}: {hits[0].excerpt}",
                mistake=False,
            )
        return bool(hits)

    def records(self) -> tuple[DecontaminationRecord, ...]:
        """Summarise each set for the lineage."""
        return decontamination_records(self.index, self.tally, self.config)

    def lines(self) -> list[str]:
        """Describe the result for each set in a line."""
        done = "removed" if self.config.action == "remove" else "kept"
        return [
            f"decontaminated against {record.name}: rows with an item"
            f" {record.documents_hit:,} ({done}), items found {record.items_hit:,} of"
            f" {record.items:,}, too short to be looked for {record.unchecked_items:,}"
            for record in self.records()
        ]


def as_decontaminate(
    value: DecontaminateConfig | Mapping[str, Any] | None,
) -> DecontaminateConfig | None:
    """Build the settings from the plain values of a config.

    Raises:
        UserError: A setting is unknown.
    """
    if value is None or isinstance(value, DecontaminateConfig):
        return value
    try:
        sets = {
            name: one if isinstance(one, EvaluationSet) else EvaluationSet(**one)
            for name, one in value.get("against", {}).items()
        }
        return DecontaminateConfig(**{**value, "against": sets})
    except TypeError as error:
        raise UserError(f"data.decontaminate: {error}") from None


@dataclass(frozen=True)
class EncodedSplit:
    """The encoded rows of one split of one source."""

    items: list[Any]
    """Rows in the form that the data class encodes them to."""
    origins: list[str]
    """File and number of each row."""


@dataclass(frozen=True)
class EncodedRows:
    """The encoded rows of all sources."""

    splits: Mapping[str, Sequence[EncodedSplit]]
    """Split -> its rows from each source, in the order of the sources."""
    tallies: Mapping[str, RowTally]
    """Source -> counts of what became of its rows."""
    decontamination: RowDecontamination | None = None
    """Compared the rows with evaluation sets, if the config names any."""

    def items(self, split: str) -> list[Any]:
        """Return the rows of a split, source by source."""
        return [item for part in self.splits[split] for item in part.items]

    def lines(self) -> list[str]:
        """Describe what became of the rows of each source, and which evaluation items they hold."""
        kept = (
            sum(len(part.items) for part in parts)
            for parts in zip(*(self.splits[split] for split in ROW_SPLITS), strict=True)
        )
        lines = [
            tally.line(name, n) for (name, tally), n in zip(self.tallies.items(), kept, strict=True)
        ]
        return lines if self.decontamination is None else lines + self.decontamination.lines()


def read_encoded(
    sources: Mapping[str, RowSource],
    *,
    kind: str,
    validation: float,
    test: float,
    on_bad_row: OnBadRow,
    encode: Callable[[Sequence[TrainingRow]], Sequence[Any]],
    note: Callable[[TrainingRow, Any, RowTally], None],
    decontamination: RowDecontamination | None = None,
) -> EncodedRows:
    """Read and encode all rows.

    Args:
        sources: The sources by name.
        kind: conversation, preference, verdict, stepwise or problem.
        validation: Share held out for validation, unless a source has a file for it.
        test: Share held out for the test.
        on_bad_row: What to do with a row that is a mistake.
        encode: Encodes rows; in place of one that cannot be used, it returns the reason.
        note: Counts facts about a row that is used.
        decontamination: Compares rows with evaluation sets.

    Raises:
        UserError: A file or row is a mistake, or no training row is left.
    """
    encoded = EncodedRows(
        {split: [EncodedSplit([], []) for _ in sources] for split in ROW_SPLITS},
        {name: RowTally() for name in sources},
        decontamination,
    )
    for s, (name, source) in enumerate(sources.items()):
        tally = encoded.tallies[name]
        rows = list(
            read_source(
                name,
                source,
                kind=kind,
                validation=validation,
                test=test,
                on_bad_row=on_bad_row,
                tally=tally,
            )
        )
        if decontamination is not None:
            rows = [
                read for read in rows if _admits(decontamination, name, read, tally, on_bad_row)
            ]
        for read, item in zip(rows, encode([read.row for read in rows]), strict=True):
            if isinstance(item, BadRow):
                drop_row(item, read.origin, tally, on_bad_row)
            else:
                note(read.row, item, tally)
                part = encoded.splits[read.split][s]
                part.items.append(item)
                part.origins.append(read.origin)
    if not encoded.items("train"):
        first = [f"{why} ({reason})" for t in encoded.tallies.values()
                 for reason, why in t.first.items()]  # fmt: skip
        raise UserError("\n  ".join(["no row is left to train on:", *encoded.lines(), *first]))
    return encoded


def _admits(
    decontamination: RowDecontamination,
    source: str,
    read: RowSplit,
    tally: RowTally,
    on_bad_row: OnBadRow,
) -> bool:
    """Count the evaluation items of a row, and tell whether the row stays."""
    try:
        if decontamination.check(source, read.origin, read.row):
            tally.noted["contaminated"] += 1
    except BadRow as bad:
        drop_row(bad, read.origin, tally, on_bad_row)
        return False
    return True
