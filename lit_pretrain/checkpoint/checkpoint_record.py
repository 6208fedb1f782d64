"""What a checkpoint carries beside the entries of Lightning (loops, optimizer states, schedulers).

    lit_pretrain     `CheckpointRecord`: step, contract, whether a validation is due
    state_dict       the network under `net.`; the score head of a reward model under `score.weight`
    adapter          `AdapterRecord` of a run whose state_dict holds an adapter alone
    metrics_window   sums of the metrics window that the checkpoint interrupts
    answers          answers that further optimizer steps still learn from

All of it is tensors and primitives, so that `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RECORD_KEY = "lit_pretrain"
ADAPTER_KEY = "adapter"
WINDOW_KEY = "metrics_window"
ANSWERS_KEY = "answers"
NET_PREFIX = "net."
"""Prefix of the network's keys in `state_dict`."""
SCORE_KEY = "score.weight"
"""Key of a reward model's score head, (1, D), in `state_dict`."""


@dataclass(frozen=True)
class CheckpointRecord:
    """Describe a checkpoint: how far the run is, and the contract that it holds to."""

    step: int
    """Optimizer steps that the run has made."""
    contract: Mapping[str, Any]
    """Config fields that decide the numbers, by dotted name (`checkpoint.contract`)."""
    validation_due: bool = False
    """Whether a resumed run begins with the validation of this step."""

    def stored(self) -> dict[str, Any]:
        """Give the entry of a checkpoint under `RECORD_KEY`."""
        return asdict(self)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> CheckpointRecord | None:
        """Read the record of a loaded checkpoint; None if lit_pretrain did not write it."""
        stored = checkpoint.get(RECORD_KEY, {})
        if "step" not in stored or "contract" not in stored:
            return None
        return cls(
            int(stored["step"]), stored["contract"], bool(stored.get("validation_due", False))
        )
