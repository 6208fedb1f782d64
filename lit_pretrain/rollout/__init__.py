"""Rollout: prompts in, sampled and rewarded answers out.

Objectives learn from them what the network says itself.
"""

from lit_pretrain.rollout.answers import Answers
from lit_pretrain.rollout.rollout import VLLM, BuiltIn, Rollout, RolloutEngine

__all__ = ["VLLM", "Answers", "BuiltIn", "Rollout", "RolloutEngine"]
