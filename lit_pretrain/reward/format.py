"""Format: 1 where a completion looks as it should, else 0."""

import re
from collections.abc import Mapping
from typing import Any

from lit_pretrain.errors import UserError


class Format:
    r"""Whether a completion has a form, whatever it says.

    Args:
        pattern: Regular expression, in which `.` means line feeds, too. Such as `<think>.*</think>\s*<answer>.*</answer>`.
        whole: Whether the whole completion, but for blanks around it, must have the form; else a part of it.
    """

    def __init__(self, pattern: str, whole: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"Format: pattern={pattern!r} is no regular expression: {error}") from None
        self.whole = whole

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """1.0 or 0.0."""
        look = self.pattern.fullmatch if self.whole else self.pattern.search
        return float(look(completion.strip()) is not None)
