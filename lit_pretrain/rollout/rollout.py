"""Rollouts: how prompts are answered, the protocol of engines, and the built-in engine.

Axes: B rows, N sampled tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from lit_pretrain.errors import UserError
from lit_pretrain.generate.completions import Completions, CompletionSampling, sample_completions
from lit_pretrain.generate.sampling import check_sampling
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.reward import Reward, read_reward


@runtime_checkable
class RolloutEngine(Protocol):
    """Answer prompts: prompts in, (tokens, mask, log-probabilities) out."""

    same_policy: bool
    """Whether it computes what the trained network computes, so that the first update after a
    rollout is on-policy by definition. Else the log-probabilities that it returns are those of the
    policy that sampled, and the ratio to them is clipped from the first update on.
    """

    def take(self, net: Transformer) -> None:
        """Take over the weights; called whenever they have changed since the last rollout."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: CompletionSampling,
        seeds: Sequence[int],
    ) -> Completions:
        """Answer each prompt once, with one seed for each.

        The same seeds give the same answers, whatever else is in the batch.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Say how a stage answers prompts (`data` of class PromptData) and rewards the answers."""

    rewards: dict[str, Reward]
    """What answers are worth: name -> reward. The sum of weight × reward is what is maximised;
    each is reported as rewards/NAME.
    """
    max_completion_tokens: int
    """Longest answer in tokens, its end of turn included; longer ones are cut there and counted
    as truncated.
    """
    temperature: float = 1.0
    """Of the samples. The loss, too, is that of softmax(logits / temperature), the distribution
    that was sampled from.
    """
    top_k: int | None = None
    """Draw from the k likeliest tokens; null: all, which alone makes the policy gradient
    unbiased. So for top_p and min_p.
    """
    top_p: float | None = None
    """Draw from the fewest tokens that together reach this probability."""
    min_p: float | None = None
    """Draw from the tokens at least this fraction as likely as the likeliest."""
    mask_truncated: bool = False
    """Learn nothing from truncated answers, but let them count in their group (Yu et al. 2025,
    section 3.4).
    """
    engine: RolloutEngine | None = None
    """What samples: lit_pretrain.rollout.BuiltIn, which null means, or
    lit_pretrain.rollout.VLLM (extra `vllm`).
    """

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "rewards", {name: read_reward(reward) for name, reward in self.rewards.items()}
        )
        if self.max_completion_tokens < 1:
            raise UserError(
                f"model.rollout.max_completion_tokens={self.max_completion_tokens} must be at"
                " least 1"
            )
        try:
            check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        except UserError as error:
            raise UserError(f"model.rollout: {error}") from None

    def sampling(self, stop_ids: frozenset[int]) -> CompletionSampling:
        """Give the settings of an engine."""
        return CompletionSampling(
            self.max_completion_tokens,
            stop_ids,
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
        )


class BuiltIn:
    """Sample from the network itself, within the training step.

    There is no copy of the weights, and the numerics are those of training.

    Args:
        rows: Answers that are generated at once, the rest after them; null: all of a step. Fewer
            take less memory for their cache.
    """

    same_policy = True

    def __init__(self, rows: int | None = None) -> None:
        if rows is not None and rows < 1:
            raise UserError(
                f"model.rollout.engine: rows={rows} must be at least 1, or null for all answers of"
                " a step"
            )
        self.rows = rows
        self._net: Transformer

    def take(self, net: Transformer) -> None:
        """Remember the network; nothing is copied."""
        self._net = net

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: CompletionSampling,
        seeds: Sequence[int],
    ) -> Completions:
        """Answer prompts; as in `RolloutEngine`."""
        size = self.rows or max(1, len(prompts))
        parts = [
            sample_completions(
                self._net, prompts[i : i + size], sampling=sampling, seeds=seeds[i : i + size]
            )
            for i in range(0, len(prompts), size)
        ]
        if len(parts) == 1:
            return parts[0]
        longest = max(part.tokens_BN.shape[1] for part in parts)
        grown = [
            [torch.nn.functional.pad(x, (0, longest - x.shape[1])) for x in part] for part in parts
        ]
        return Completions(*(torch.cat(columns) for columns in zip(*grown, strict=True)))
