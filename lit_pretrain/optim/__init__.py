"""Optimisation: recipes that group parameters by role (AdamW, Muon), and schedules of the rate.

The planner reads recipes and schedules, so nothing here imports torch; `clip` and `muon` do.
"""

from lit_pretrain.optim.optimizer import (
    AdamW,
    MuonAdamW,
    OptimizerRecipe,
    TorchOptimizer,
    decays,
    recipe_of,
    split_by_role,
)
from lit_pretrain.optim.schedule import Schedule, factor, span_to_steps

__all__ = [
    "AdamW",
    "MuonAdamW",
    "OptimizerRecipe",
    "Schedule",
    "TorchOptimizer",
    "decays",
    "factor",
    "recipe_of",
    "span_to_steps",
    "split_by_role",
]
