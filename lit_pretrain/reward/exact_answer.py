"""ExactAnswer: 1 where the answer is the right one, else 0."""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Optional

from lit_pretrain.errors import UserError

_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")


class ExactAnswer:
    """Whether the answer of a completion equals that of the row; numbers are compared as numbers (1,200.0 is 1200).

    Args:
        after: The answer is the rest of the line after the last such mark, as `####` in GSM8K; without it there is none. Null: the whole
            completion.
        last_number: The answer is the last number in that text, whatever stands around it.
        field: Field of the row that holds the right answer.
    """

    def __init__(self, after: Optional[str] = None, last_number: bool = False, field: str = "answer") -> None:
        if after == "":
            raise UserError("ExactAnswer: after must be a mark such as '####', or null for the whole completion; found an empty text")
        self.after = after
        self.last_number = last_number
        self.field = field

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """1.0 or 0.0."""
        if self.field not in row:
            raise UserError(f"ExactAnswer: the row has no field {self.field!r}; it has {', '.join(map(repr, row))}")
        found = self.extract(completion)
        return float(found is not None and _same(found, str(row[self.field])))

    def extract(self, completion: str) -> Optional[str]:
        """The answer in a completion; None where it holds none."""
        text = completion
        if self.after is not None:
            if self.after not in text:
                return None
            lines = text.rsplit(self.after, 1)[1].strip().splitlines()
            text = lines[0] if lines else ""
        if self.last_number:
            numbers = _NUMBER.findall(text)
            return numbers[-1] if numbers else None
        return text.strip() or None


def _same(a: str, b: str) -> bool:
    one, other = _number(a), _number(b)
    return a.strip() == b.strip() if one is None or other is None else one == other


def _number(text: str) -> Optional[Decimal]:
    """The number that a text is, None where it is none."""
    plain = text.strip().rstrip(".").replace(",", "").replace("$", "")
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
