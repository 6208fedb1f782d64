"""Random: a reward that knows nothing, for the control of an experiment."""

import hashlib
from collections.abc import Mapping
from typing import Any

from lit_pretrain.errors import UserError


class Random:
    """1 with a given probability, else 0, whatever the answer; a function of (seed, step, sample, number of the answer).

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
        """1.0 or 0.0."""
        place = row["rollout"]
        digest = hashlib.sha256(f"{self.seed}\x00{place['step']}\x00{place['sample']}\x00{place['answer']}".encode()).digest()
        return float(int.from_bytes(digest[:8], "little") / 2**64 < self.probability)
