"""Encoded rows: what the files of post-training data hold, split, and encoded as a collation wants it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Optional

from lit_pretrain.data.messages import BadRow, Row
from lit_pretrain.data.row_gate import RowGate
from lit_pretrain.data.row_source import SPLITS, RowSource, Split, Tally, read_source, settle, tallies
from lit_pretrain.errors import UserError


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
    tallies: Mapping[str, Tally]
    """What became of the rows of every source, by its name."""
    gate: Optional[RowGate] = None
    """What they were held against."""

    def items(self, split: str) -> list[Any]:
        """The rows of a split, source by source."""
        return [item for held in self.splits[split] for item in held.items]

    def lines(self) -> list[str]:
        """What became of the rows, a line for each source, and what evaluation sets they held."""
        kept = (sum(len(held.items) for held in parts) for parts in zip(*(self.splits[split] for split in SPLITS), strict=True))
        lines = [tally.line(name, n) for (name, tally), n in zip(self.tallies.items(), kept, strict=True)]
        return lines if self.gate is None else lines + self.gate.lines()


def read_encoded(
    sources: Mapping[str, RowSource],
    *,
    kind: str,
    validation: float,
    test: float,
    on_bad_row: Literal["refuse", "drop"],
    encode: Callable[[Sequence[Row]], Sequence[Any]],
    note: Callable[[Row, Any, Tally], None],
    gate: Optional[RowGate] = None,
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
        gate: What they are held against.

    Raises:
        UserError: A file or row is a mistake, or no training row is left.
    """
    encoded = EncodedRows({split: [Held([], []) for _ in sources] for split in SPLITS}, tallies(sources), gate)
    for s, (name, source) in enumerate(sources.items()):
        tally = encoded.tallies[name]
        rows = list(read_source(name, source, kind=kind, validation=validation, test=test, on_bad_row=on_bad_row, tally=tally))
        if gate is not None:
            rows = [read for read in rows if _admits(gate, name, read, tally, on_bad_row)]
        for read, item in zip(rows, encode([read.row for read in rows]), strict=True):
            if isinstance(item, BadRow):
                settle(item, read.where, tally, on_bad_row)
            else:
                note(read.row, item, tally)
                held = encoded.splits[read.name][s]
                held.items.append(item)
                held.wheres.append(read.where)
    if not encoded.items("train"):
        raise UserError("no row is left to train on:\n  " + "\n  ".join(encoded.lines()))
    return encoded


def _admits(gate: RowGate, source: str, read: Split, tally: Tally, on_bad_row: Literal["refuse", "drop"]) -> bool:
    """Whether a row stays, whatever evaluation items it holds."""
    try:
        if gate.check(source, read.where, read.row):
            tally.noted["contaminated"] += 1
    except BadRow as bad:
        settle(bad, read.where, tally, on_bad_row)
        return False
    return True
