"""Objectives: pure tensor mathematics from label scores and a batch to (sum, count, metrics)."""

from .bits_per_byte import BitsPerByte
from .cross_entropy import CrossEntropy
from .label_scores import LabelScores
from .linear_cross_entropy import linear_cross_entropy, linear_logp
from .objective import Objective

__all__ = ["BitsPerByte", "CrossEntropy", "LabelScores", "Objective", "linear_cross_entropy", "linear_logp"]
