"""BuiltIn: rollouts by the network that is trained, with the key-value cache of `lit_pretrain.generate`."""

from collections.abc import Sequence
from typing import Optional

import torch

from lit_pretrain.errors import UserError
from lit_pretrain.generate.completions import Completions, Sampling, sample_completions
from lit_pretrain.model.transformer import Transformer


class BuiltIn:
    """Samples from the network itself, within the training step: no copy of the weights, and no other numerics.

    Args:
        rows: Answers that are generated at once, the rest after them; null: all of a step. Fewer take less memory for their cache.
    """

    same_policy = True

    def __init__(self, rows: Optional[int] = None) -> None:
        if rows is not None and rows < 1:
            raise UserError(f"model.rollout.engine: rows={rows} must be at least 1, or null for all answers of a step")
        self.rows = rows
        self._net: Transformer

    def take(self, net: Transformer) -> None:
        """Nothing to copy."""
        self._net = net

    def generate(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seeds: Sequence[int]) -> Completions:
        """Answer prompts; as in `RolloutEngine`."""
        size = self.rows or max(1, len(prompts))
        parts = [
            sample_completions(self._net, prompts[i : i + size], sampling=sampling, seeds=seeds[i : i + size])
            for i in range(0, len(prompts), size)
        ]
        if len(parts) == 1:
            return parts[0]
        longest = max(part.tokens_BN.shape[1] for part in parts)
        grown = [[torch.nn.functional.pad(x, (0, longest - x.shape[1])) for x in part] for part in parts]
        return Completions(*(torch.cat(columns) for columns in zip(*grown, strict=True)))
