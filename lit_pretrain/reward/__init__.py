"""Rewards: callables (prompt, completion, row) -> float that say how good an answer is."""

from .exact_answer import ExactAnswer
from .format import Format
from .length_penalty import LengthPenalty
from .random import Random
from .reasoning_gym import ReasoningGym
from .reward import Reward, Rewards, read_reward

__all__ = ["ExactAnswer", "Format", "LengthPenalty", "Random", "ReasoningGym", "Reward", "Rewards", "read_reward"]
