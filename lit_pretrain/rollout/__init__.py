"""Rollout: prompts in, sampled and rewarded answers out, for objectives that learn from what the network says itself."""

from .answers import Answers
from .builtin import BuiltIn
from .settings import Rollout, RolloutEngine

__all__ = ["Answers", "BuiltIn", "Rollout", "RolloutEngine"]
