"""RowGate: rows of post-training held against what the model will be examined on, as `prepare` does with documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from lit_pretrain.data.decontaminate.config import DecontaminateConfig, EvaluationSet
from lit_pretrain.data.decontaminate.index import Index
from lit_pretrain.data.decontaminate.tally import Tally, gate_records
from lit_pretrain.data.gate import GateRecord
from lit_pretrain.data.messages import BadRow, Conversation, Message, Preference, Row, Verdict
from lit_pretrain.errors import UserError


class RowGate:
    """Looks for evaluation items in rows, and counts what it finds.

    Args:
        config: The sets, and what becomes of a row with a hit.

    Raises:
        UserError: The config is wrong, or a set cannot be read.
    """

    def __init__(self, config: DecontaminateConfig) -> None:
        self.config = config
        self.index = Index.build(config)
        self.tally = Tally()

    @property
    def identity(self) -> list[str]:
        """What decides about the rows that stay."""
        return [self.index.hash, self.config.action]

    def check(self, source: str, where: str, row: Row) -> bool:
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
            raise BadRow("contaminated", f"the row holds an item of {names}: {hits[0].excerpt}", mistake=False)
        return bool(hits)

    def records(self) -> tuple[GateRecord, ...]:
        """What the lineage says of every set."""
        return gate_records(self.index, self.tally, self.config)

    def lines(self) -> list[str]:
        """A line for each set."""
        done = "removed" if self.config.action == "remove" else "kept"
        return [
            f"held against {record.name}: rows with an item {record.documents_hit:,} ({done}), items found {record.items_hit:,} of "
            f"{record.items:,}, too short to be looked for {record.unchecked_items:,}"
            for record in self.records()
        ]


def text_of(row: Row) -> str:
    """All that a row says, message after message; of a pair both completions."""
    if isinstance(row, Conversation):
        return _joined(row.messages)
    if isinstance(row, Preference):
        return _joined((*row.prompt, *row.chosen, *row.rejected))
    if isinstance(row, Verdict):
        return _joined((*row.prompt, *row.completion))
    return "\n".join([_joined(row.prompt), row.answer])


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message["content"] for message in messages if message.get("content"))


def as_decontaminate(value: Optional[DecontaminateConfig | Mapping[str, Any]]) -> Optional[DecontaminateConfig]:
    """The settings from plain values, as a config holds them.

    Raises:
        UserError: A name is unknown.
    """
    if value is None or isinstance(value, DecontaminateConfig):
        return value
    try:
        sets = {name: one if isinstance(one, EvaluationSet) else EvaluationSet(**one) for name, one in value.get("against", {}).items()}
        return DecontaminateConfig(**{**value, "against": sets})
    except TypeError as error:
        raise UserError(f"data.decontaminate: {error}") from None
