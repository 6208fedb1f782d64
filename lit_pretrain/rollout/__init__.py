"""Rollout: prompts in, sampled and rewarded answers out, for objectives that learn from what the network says itself."""

from .answers import Answers
from .builtin import BuiltIn
from .settings import Rollout, RolloutEngine
from .vllm import VLLM

__all__ = ["VLLM", "Answers", "BuiltIn", "Rollout", "RolloutEngine"]
