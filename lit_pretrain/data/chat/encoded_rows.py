"""Encoded rows: what the files of post-training data hold, split, and encoded as a collation
wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Optional

from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    JudgedAnswer,
    Message,
    Preference,
    TrainingRow,
)
from lit_pretrain.data.chat.row_source import (
    ROW_SPLITS,
    RowSource,
    RowSplit,
    RowTally,
    read_source,
    settle_row_source,
    tallies,
)
from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord
from lit_pretrain.decontaminate.decontamination_tally import (
    DecontaminationTally,
    decontamination_records,
)
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet
from lit_pretrain.errors import UserError

# Decontamination of rows, as `prepare` does it with documents.


class RowDecontamination:
    """Looks for evaluation items in rows, and counts what it finds.

    Args:
        config: The sets, and what becomes of a row with a hit.

    Raises:
        UserError: The config is wrong, or a set cannot be read.
    """

    def __init__(self, config: DecontaminateConfig) -> None:
        self.config = config
        self.index = DecontaminationIndex.build(config)
        self.tally = DecontaminationTally()

    @property
    def identity(self) -> list[str]:
        """What decides about the rows that stay."""
        return [self.index.hash, self.config.action]

    def check(self, source: str, where: str, row: TrainingRow) -> bool:
        """Count the items that a row holds.

        Args:
            source: Name of its source.
            where: File and number of the row.
            row: The row.

        Returns:
            Whether there is one; the row stays then only to be marked.

        Raises:
            BadRow: There is one, and rows with items are to be removed.
        """
        hits = self.index.check(text_of(row))
        self.tally.add(source, where, hits)
        if hits and self.config.action == "remove":
            names = ", ".join(sorted({hit.set for hit in hits}))
            raise BadRow(
                "contaminated",
                f"the row holds an item of {names}: {hits[0].excerpt}",
                mistake=False,
            )
        return bool(hits)

    def records(self) -> tuple[DecontaminationRecord, ...]:
        """What the lineage says of every set."""
        return decontamination_records(self.index, self.tally, self.config)

    def lines(self) -> list[str]:
        """A line for each set."""
        done = "removed" if self.config.action == "remove" else "kept"
        return [
            f"held against {record.name}: rows with an item {record.documents_hit:,} ({done}),"
            f" items found {record.items_hit:,} of {record.items:,}, too short to be looked for"
            f" {record.unchecked_items:,}"
            for record in self.records()
        ]


def text_of(row: TrainingRow) -> str:
    """All that a row says, message after message; of a pair both completions."""
    if isinstance(row, Conversation):
        return _joined(row.messages)
    if isinstance(row, Preference):
        return _joined((*row.prompt, *row.chosen, *row.rejected))
    if isinstance(row, JudgedAnswer):
        return _joined((*row.prompt, *row.completion))
    return "\n".join([_joined(row.prompt), row.answer])


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message["content"] for message in messages if message.get("content"))


def as_decontaminate(
    value: Optional[DecontaminateConfig | Mapping[str, Any]],
) -> Optional[DecontaminateConfig]:
    """The settings from plain values, as a config holds them.

    Raises:
        UserError: A name is unknown.
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


class Held(NamedTuple):
    """The encoded rows of one source and split."""

    items: list[Any]
    wheres: list[str]
    """File and number of each row."""


@dataclass(frozen=True)
class EncodedRows:
    """The encoded rows of all sources."""

    splits: Mapping[str, Sequence[Held]]
    """Split -> what every source has of it, in the order of the sources."""
    tallies: Mapping[str, RowTally]
    """What became of the rows of every source, by its name."""
    decontamination: Optional[RowDecontamination] = None
    """What they were held against."""

    def items(self, split: str) -> list[Any]:
        """The rows of a split, source by source."""
        return [item for held in self.splits[split] for item in held.items]

    def lines(self) -> list[str]:
        """What became of the rows, a line for each source, and what evaluation sets they held."""
        kept = (
            sum(len(held.items) for held in parts)
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
    on_bad_row: Literal["refuse", "drop"],
    encode: Callable[[Sequence[TrainingRow]], Sequence[Any]],
    note: Callable[[TrainingRow, Any, RowTally], None],
    decontamination: Optional[RowDecontamination] = None,
) -> EncodedRows:
    """Read and encode every row.

    Args:
        sources: Where they lie, by name.
        kind: conversation, preference, verdict or problem.
        validation: Share held out for validation, unless a source has a file for it.
        test: Share held out for the test.
        on_bad_row: Whether a mistake stops everything or is counted.
        encode: Rows as a collation wants them, each or the `BadRow` that it turned out to be.
        note: Counts what is worth knowing about a row that is used.
        decontamination: What they are held against.

    Raises:
        UserError: A file or row is a mistake, or no training row is left.
    """
    encoded = EncodedRows(
        {split: [Held([], []) for _ in sources] for split in ROW_SPLITS},
        tallies(sources),
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
                settle_row_source(item, read.where, tally, on_bad_row)
            else:
                note(read.row, item, tally)
                held = encoded.splits[read.name][s]
                held.items.append(item)
                held.wheres.append(read.where)
    if not encoded.items("train"):
        raise UserError("no row is left to train on:\n  " + "\n  ".join(encoded.lines()))
    return encoded


def _admits(
    decontamination: RowDecontamination,
    source: str,
    read: RowSplit,
    tally: RowTally,
    on_bad_row: Literal["refuse", "drop"],
) -> bool:
    """Whether a row stays, whatever evaluation items it holds."""
    try:
        if decontamination.check(source, read.where, read.row):
            tally.noted["contaminated"] += 1
    except BadRow as bad:
        settle_row_source(bad, read.where, tally, on_bad_row)
        return False
    return True
