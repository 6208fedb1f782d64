"""Nearest: the name that a misspelt one most likely meant, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A question " Did you mean ...?" with a space before it, blind to case; empty when nothing comes near."""
    by_lower = {spelling.lower(): spelling for spelling in sorted(known)}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
