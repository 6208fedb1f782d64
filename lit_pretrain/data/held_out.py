"""Held-out rows: the fixed selection that validations and tests read.

It is the same at every validation and for every number of ranks.
"""

from lit_pretrain.corpus.manifest import Manifest, held_out_rows
from lit_pretrain.errors import UserError
from lit_pretrain.hashing import permutation


def chosen_rows(n: int, *, split: str, source: str, limit: int | None) -> list[int]:
    """Choose which of the n rows of a source in a split are read, in rising order.

    Args:
        n: Number of rows.
        split: validation or test.
        source: Name of the source.
        limit: Most rows to read; None reads all.
    """
    return sorted(permutation(n, "held-out", split, source).tolist()[:limit])


def rows_held_out(manifest: Manifest, split: str, *, seq_len: int, location: str) -> list[int]:
    """Count the rows of each source of prepared text in a held-out split (`held_out_rows`).

    Args:
        manifest: Manifest of the data.
        split: validation or test.
        seq_len: Inputs per row.
        location: Where the data lies, for the message.

    Raises:
        UserError: The split holds no row.
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
    manifest: Manifest, split: str, *, seq_len: int, tokens: int | None, location: str
) -> list[tuple[int, int]]:
    """Choose the (source, row) pairs to read of a held-out split, evenly over the sources.

    Args:
        manifest: Manifest of the data.
        split: validation or test.
        seq_len: Inputs per row.
        tokens: Most inputs over all sources; None reads all rows.
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
