"""Built-in rewards: exact answers, formats, lengths, a random control and reasoning-gym.

Each is a callable (prompt, completion, row) -> float. One of your own needs no change here: name
the dotted path of a function or class under `model.rollout.rewards`.
"""

import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from lit_pretrain.errors import UserError

_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")


class ExactAnswer:
    """Reward a completion whose answer equals the row's.

    Numbers are compared as numbers: 1,200.0 is 1200.

    Args:
        after: The answer is the rest of the line after the last such mark, as `####` in GSM8K;
            without it there is none. Null: the whole completion.
        last_number: The answer is the last number in that text, whatever stands around it.
        field: Field of the row that holds the right answer.
    """

    def __init__(
        self, after: str | None = None, last_number: bool = False, field: str = "answer"
    ) -> None:
        if after == "":
            raise UserError(
                "ExactAnswer: after must be a mark such as '####', or null for the whole"
                " completion; found an empty text"
            )
        self.after = after
        self.last_number = last_number
        self.field = field

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        if self.field not in row:
            raise UserError(
                f"ExactAnswer: the row has no field {self.field!r}; it has"
                f" {', '.join(map(repr, row))}"
            )
        found = self.extract(completion)
        return float(found is not None and _same(found, str(row[self.field])))

    def extract(self, completion: str) -> str | None:
        """Find the answer in a completion; None if it holds none."""
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


def _number(text: str) -> Decimal | None:
    """Read a text as a number; None if it is none."""
    plain = text.strip().rstrip(".").replace(",", "").replace("$", "")
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


class Format:
    r"""Reward a completion that has a form, whatever it says.

    Args:
        pattern: Regular expression, in which `.` means line feeds, too. Such as
            `<think>.*</think>\s*<answer>.*</answer>`.
        whole: Whether the whole completion, but for blanks around it, must have the form; else a
            part of it.
    """

    def __init__(self, pattern: str, whole: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(
                f"Format: pattern={pattern!r} is no regular expression: {error}"
            ) from None
        self.whole = whole

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        look = self.pattern.fullmatch if self.whole else self.pattern.search
        return float(look(completion.strip()) is not None)


class LengthPenalty:
    """Punish answers that are too long, softly (Yu et al. 2025, eq. 13).

    Lengths are in tokens, the stop token included.

    Args:
        free_tokens: Up to so many the penalty is 0.
        max_tokens: From there it falls linearly to -1 at so many, and stays there.
    """

    def __init__(self, free_tokens: int, max_tokens: int) -> None:
        if not 0 <= free_tokens < max_tokens:
            raise UserError(
                f"LengthPenalty: free_tokens={free_tokens} must be below max_tokens={max_tokens},"
                " and not negative"
            )
        self.free_tokens = free_tokens
        self.max_tokens = max_tokens

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Return a value between -1.0 and 0.0."""
        over: float = (row["rollout"]["tokens"] - self.free_tokens) / (
            self.max_tokens - self.free_tokens
        )
        return -min(max(over, 0.0), 1.0)


class Random:
    """Reward at random, whatever the answer: the control of an experiment.

    The value is a function of (seed, step, sample, number of the answer).

    Args:
        probability: Of a 1.
        seed: Another seed is another sequence.
    """

    def __init__(self, probability: float = 0.5, seed: int = 0) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"Random: probability={probability} must lie in [0, 1]")
        self.probability = probability
        self.seed = seed

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        place = row["rollout"]
        digest = hashlib.sha256(
            f"{self.seed}\x00{place['step']}\x00{place['sample']}\x00{place['answer']}".encode()
        ).digest()
        return float(int.from_bytes(digest[:8], "little") / 2**64 < self.probability)


class ReasoningGym:
    """Reward an answer as reasoning-gym scores it (rows of `task: {name: reasoning_gym/NAME}`).

    It needs the extra `reasoning`. The completion is taken as the answer, but for blanks around it.
    """

    def __init__(self) -> None:
        try:
            import reasoning_gym
        except ImportError:
            raise UserError(
                "ReasoningGym needs reasoning-gym: pip install 'lit_pretrain[reasoning]'"
            ) from None
        self._scorer = reasoning_gym.get_score_answer_fn

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Return a value between 0.0 and 1.0."""
        if "entry" not in row:
            raise UserError(
                "ReasoningGym scores rows of task: {name: reasoning_gym/NAME}; this row has no"
                " entry of reasoning-gym"
            )
        return float(self._scorer(row["task"])(answer=completion.strip(), entry=row["entry"]))
