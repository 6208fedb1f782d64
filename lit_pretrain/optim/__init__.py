"""Optimisation: parameter groups by role, schedules in steps or tokens, AdamW and Muon as one
optimizer, and clipping.
"""

from lit_pretrain.optim.adamw import AdamW
from lit_pretrain.optim.clip import global_norm, scale_and_clip_
from lit_pretrain.optim.muon_adamw import MuonAdamW
from lit_pretrain.optim.param_groups import Role, split_by_role
from lit_pretrain.optim.schedule import Schedule, factor, span_to_steps

__all__ = [
    "AdamW",
    "MuonAdamW",
    "Role",
    "Schedule",
    "factor",
    "global_norm",
    "scale_and_clip_",
    "span_to_steps",
    "split_by_role",
]
