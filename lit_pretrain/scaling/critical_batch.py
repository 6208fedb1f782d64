"""Critical batch: how large a step may become before it costs loss at equal tokens.

From one checkpoint several branches read the same tokens in steps of k times as many, for a short
while, each with its rates moved to its batch (Merrill et al. 2025, 2505.23971). The largest batch
whose loss is still that of the run's own, within a tolerance, is the critical one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_pretrain.errors import UserError


class BranchOutcome(NamedTuple):
    """What a branch came to."""

    factor: float
    """Its batch as a multiple of the run's."""
    batch_tokens: int
    steps: int
    loss: float
    """Validation loss at its end."""
    curve: Sequence[tuple[float, float]]
    """Tokens since the checkpoint and mean training loss, window by window."""


def moved(settings: Mapping[str, Any], *, factor: float, share: float) -> dict[str, Any]:
    """Move the settings of an optimizer to a batch that is larger by a factor.

    Rates and decays grow by √factor and the second moment's decay per step becomes β₂^factor, so
    that its memory and that of the weights stay the same in tokens (Malladi et al. 2022,
    2205.10287).

    Args:
        settings: Those of the run, by name.
        factor: Of the batch.
        share: Of the peak rate that the run has reached where it branches.

    Raises:
        UserError: There is no learning rate among them.
    """
    root, found = math.sqrt(factor), dict(settings)
    rates = [name for name in found if name == "lr" or name.endswith("_lr")]
    if not rates:
        raise UserError(
            "model.optimizer has neither lr nor a rate by role (matrix_lr, …), so that no branch"
            " can be given a rate for its batch"
        )
    for name in rates:
        found[name] *= share * root
    for name in found:
        if name == "weight_decay" or name.endswith("_weight_decay"):
            found[name] *= root
    betas = found.get("betas")
    if betas is not None:
        found["betas"] = [*betas[:-1], betas[-1] ** factor]
    return found


def critical_factor(outcomes: Sequence[BranchOutcome], tolerance: float) -> float:
    """Return the largest factor whose loss is within a tolerance of that of factor 1."""
    own = next(its.loss for its in outcomes if its.factor == 1)
    return max(its.factor for its in outcomes if its.loss <= own + tolerance)
