"""Objectives: pure tensor mathematics from label scores and a batch to (sum, count, metrics)."""

from .bits_per_byte import BitsPerByte
from .cpo import CPO
from .cross_entropy import CrossEntropy
from .distillation import Distillation
from .dpo import DPO
from .grpo import GRPO, group_advantages
from .kto import KTO
from .label_scores import LabelScores
from .linear_cross_entropy import linear_cross_entropy, linear_logp
from .means import Means
from .objective import Objective
from .orpo import ORPO
from .reward_model import RewardModel
from .simpo import SimPO

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
    "RewardModel",
    "SimPO",
    "group_advantages",
    "linear_cross_entropy",
    "linear_logp",
]
