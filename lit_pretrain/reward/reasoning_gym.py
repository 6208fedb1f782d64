"""ReasoningGym: the scorer that belongs to a dataset of reasoning-gym."""

from collections.abc import Mapping
from typing import Any

from lit_pretrain.errors import UserError


class ReasoningGym:
    """The score that reasoning-gym gives an answer to one of its problems (rows of `task: {name: reasoning_gym/NAME}`).

    It needs the extra `reasoning`. The completion is taken as the answer, but for blanks around it.
    """

    def __init__(self) -> None:
        try:
            import reasoning_gym
        except ImportError:
            raise UserError("ReasoningGym needs reasoning-gym: pip install 'lit_pretrain[reasoning]'") from None
        self._scorer = reasoning_gym.get_score_answer_fn

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        """Between 0.0 and 1.0."""
        if "entry" not in row:
            raise UserError("ReasoningGym scores rows of task: {name: reasoning_gym/NAME}; this row has no entry of reasoning-gym")
        return float(self._scorer(row["task"])(answer=completion.strip(), entry=row["entry"]))
