"""Weight average: a moving average of the weights of a run, by half-life in tokens.

After an update the average holds the weights of earlier updates with shares that halve with every
half-life, each in proportion to the tokens since the update before it, which differ where the batch
does. It is divided by the sum of the shares, so that it says nothing of the weights before the
first update. The averages lie beside the optimizer's moments, in the state of each parameter: they
are sharded, saved, moved and restored as those are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError

STATE = "average"
"""Name of the average in the optimizer's state of a parameter."""
UPDATES = 25
"""Updates in a half-life. More of them move the average by less than the weights move between two,
and cost a pass over the weights each.
"""


class AverageRecord(TypedDict):
    """What a checkpoint holds of an average beside its tensors."""

    seen: int
    """Optimizer steps since it began."""
    updates: int
    names: list[str]
    """Of the parameters that are averaged, in the order of the optimizer's groups."""


class WeightAverage:
    """The average of everything that an optimizer trains.

    Args:
        optimizer: Any optimizer; its parameters are fp32.
        half_life: In tokens.
        batch: Inputs of the optimizer steps.

    Raises:
        UserError: A parameter has another type, in which small steps are lost.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, half_life: float, batch: BatchSizes
    ) -> None:
        self.optimizer = optimizer
        self.half_life = half_life
        self.batch = batch
        self.every = max(1, int(half_life / batch.largest / UPDATES))
        """Optimizer steps from one update to the next."""
        self.begin = 0
        """Optimizer step with which the average begins; that of a fork may do so later."""
        self.seen = 0
        """Optimizer steps since then."""
        types = {p.dtype for p in self._parameters() if p.dtype != torch.float32}
        if types:
            raise UserError(
                "model.ema_half_life: the weights are"
                f" {str(types.pop()).removeprefix('torch.')}, in which an average loses small"
                " steps; take trainer.precision=bf16-mixed or 32-true"
            )
        # A sharded optimizer is restored into what its first step has made.
        optimizer.register_step_post_hook(lambda *_: self._make())

    def resume(self, stored: Mapping[str, Any], *, step: int) -> None:
        """Go on at a step with what a checkpoint holds beside the tensors, or begin there."""
        self.seen = stored.get("seen", 0)
        self.begin = step - self.seen

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _make(self) -> None:
        for parameter in self._parameters():
            state = self.optimizer.state[parameter]
            if STATE not in state:
                state[STATE] = parameter.detach().clone()

    @torch.no_grad()
    def update(self) -> None:
        """Take up the weights after an optimizer step, where one is due."""
        self.seen += 1
        if self.seen % self.every:
            return
        end = self.begin + self.seen
        # The shares of all updates add up to that of the tokens since the begin.
        share = self._gone(end - self.every, end) / self._gone(self.begin, end)
        parameters = self._parameters()
        averages = [_local(self.optimizer.state[p][STATE]) for p in parameters]
        torch._foreach_lerp_(averages, [_local(p) for p in parameters], share)

    def _gone(self, begin: int, end: int) -> float:
        """Return by how much the share of something falls between two steps."""
        tokens = self.batch.first(end) - self.batch.first(begin)
        return -math.expm1(-math.log(2) * tokens / self.half_life)

    def stored(self, names: Mapping[int, str]) -> AverageRecord:
        """Return what a checkpoint holds of the average beside its tensors.

        Args:
            names: Identity of a parameter -> its name.
        """
        return {
            "seen": self.seen,
            "updates": self.seen // self.every,
            "names": [names[id(parameter)] for parameter in self._parameters()],
        }


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
