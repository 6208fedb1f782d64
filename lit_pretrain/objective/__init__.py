"""Objectives: pure tensor mathematics from label scores and a batch to (sum, count, metrics)."""

from lit_pretrain.objective.distillation import Distillation
from lit_pretrain.objective.grpo import GRPO, group_advantages
from lit_pretrain.objective.kto import KTO
from lit_pretrain.objective.linear_cross_entropy import linear_cross_entropy, linear_logp
from lit_pretrain.objective.objective import CrossEntropy, LabelScores, Objective, tokens_of
from lit_pretrain.objective.preference import CPO, DPO, ORPO, RewardModel, SimPO
from lit_pretrain.objective.process_reward import ProcessRewardModel
from lit_pretrain.objective.sums import BitsPerByte, Means, StepSums

__all__ = [
    "CPO",
    "DPO",
    "GRPO",
    "KTO",
    "ORPO",
    "BitsPerByte",
    "CrossEntropy",
    "Distillation",
    "LabelScores",
    "Means",
    "Objective",
    "ProcessRewardModel",
    "RewardModel",
    "SimPO",
    "StepSums",
    "group_advantages",
    "linear_cross_entropy",
    "linear_logp",
    "tokens_of",
]
