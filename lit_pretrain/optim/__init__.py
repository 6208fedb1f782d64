"""Optimisation: parameter groups by role, schedules in steps or tokens, AdamW and Muon as one optimizer, and clipping."""

from .adamw import AdamW
from .clip import global_norm, scale_and_clip_
from .muon_adamw import MuonAdamW
from .param_groups import Role, split_by_role
from .schedule import Schedule, factor, span_to_steps

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
