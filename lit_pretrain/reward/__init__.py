"""Rewards: callables (prompt, completion, row) -> float that say how good an answer is."""

from lit_pretrain.reward.builtin_rewards import (
    ExactAnswer,
    Format,
    LengthPenalty,
    Random,
    ReasoningGym,
)
from lit_pretrain.reward.reward import Reward, Rewards, read_reward

__all__ = [
    "ExactAnswer",
    "Format",
    "LengthPenalty",
    "Random",
    "ReasoningGym",
    "Reward",
    "Rewards",
    "read_reward",
]
