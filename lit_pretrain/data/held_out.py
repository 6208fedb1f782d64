"""Held out: the fixed selection of rows that validations and tests read, the same every time
and for every number of ranks.
"""

from typing import Optional

from lit_pretrain.corpus.manifest import Manifest, held_out_rows
from lit_pretrain.errors import UserError
from lit_pretrain.hashing import permutation


def chosen_rows(n: int, *, split: str, source: str, limit: Optional[int]) -> list[int]:
    """Numbers of the rows that are read of the n that a source has in a split, rising.

    Args:
        n: Rows there are.
        split: validation or test.
        source: Name of the source.
        limit: Most rows to read; None reads all.
    """
    return sorted(permutation(n, "held-out", split, source).tolist()[:limit])


def rows_held_out(manifest: Manifest, split: str, *, seq_len: int, location: str) -> list[int]:
    """Rows that each source of prepared text has in a split that is held out (`held_out_rows`).

    Args:
        manifest: The data.
        split: validation or test.
        seq_len: Inputs per row.
        location: Where the data lies, for the message.

    Raises:
        UserError: There is none at all.
    """
    rows = [
        sum(held_out_rows([chunk.tokens for chunk in source.splits[split].chunks], seq_len))
        for source in manifest.sources.values()
    ]
    if not any(rows):
        raise UserError(
            f"the {split} split of {location} holds no text; prepare it again with more text,"
            f" or with a larger splits.{split} in the prepare config"
        )
    return rows


def spread_rows(
    manifest: Manifest, split: str, *, seq_len: int, tokens: Optional[int], location: str
) -> list[tuple[int, int]]:
    """(source, row) of what is read of a split of prepared text, spread evenly over the sources.

    Args:
        manifest: The data.
        split: validation or test.
        seq_len: Inputs per row.
        tokens: Inputs to read over all sources; None reads all rows.
        location: Where the data lies, for the message.

    Raises:
        UserError: The split holds no text.
    """
    rows = rows_held_out(manifest, split, seq_len=seq_len, location=location)
    share = max(rows) if tokens is None else max(1, tokens // seq_len // sum(n > 0 for n in rows))
    return [
        (s, row)
        for s, (name, n) in enumerate(zip(manifest.sources, rows, strict=True))
        for row in chosen_rows(n, split=split, source=name, limit=share)
    ]
