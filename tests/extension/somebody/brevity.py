"""brevity: a reward in a file outside lit_pretrain."""

from collections.abc import Mapping
from typing import Any


def brevity(prompt: str, completion: str, row: Mapping[str, Any], *, most: int = 3) -> float:
    """Reward an answer of at most `most` characters."""
    return float(len(completion) <= most)
