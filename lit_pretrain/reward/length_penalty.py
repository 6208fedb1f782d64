"""LengthPenalty: nothing for short answers, then ever less, down to -1."""

from collections.abc import Mapping
from typing import Any

from lit_pretrain.errors import UserError


class LengthPenalty:
    """Soft overlong punishment (Yu et al. 2025, eq. 13), in tokens, the stop token included.

    Args:
        free_tokens: Up to so many the penalty is 0.
        max_tokens: From there it falls linearly to -1 at so many, and stays there.
    """

    def __init__(self, free_tokens: int, max_tokens: int) -> None:
        if not 0 <= free_tokens < max_tokens:
            raise UserError(f"LengthPenalty: free_tokens={free_tokens} must be below max_tokens={max_tokens}, and not negative")
        self.free_tokens = free_tokens
        self.max_tokens = max_tokens

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Between -1.0 and 0.0."""
        over: float = (row["rollout"]["tokens"] - self.free_tokens) / (self.max_tokens - self.free_tokens)
        return -min(max(over, 0.0), 1.0)
