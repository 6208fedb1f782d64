"""Text: what `scaling` prints for reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

COUNTS = {"total": "total parameters", "matmul": "matmul parameters", "nonembed": "non-embedding parameters"}


def aligned(rows: Sequence[Sequence[str]], *, left: tuple[int, ...] = (0,)) -> list[str]:
    """Columns of cells, right-aligned but for those named."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def between(interval: Optional[Sequence[float]], digits: int = 4) -> str:
    """An interval."""
    return "-" if interval is None else f"{interval[0]:.{digits}g} to {interval[1]:.{digits}g}"


def big(value: float) -> str:
    """Parameters and tokens, short."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def big_between(interval: Optional[Sequence[float]]) -> str:
    """An interval of parameters or tokens."""
    return "-" if interval is None else f"{big(interval[0])} to {big(interval[1])}"


def clock(seconds: float) -> str:
    """A time in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
