"""Weight average: a moving average of the weights of a run, by half-life in tokens.

After update m the average holds the weights of earlier updates with shares that halve with every
half-life. It is divided by the sum of the shares, so that it says nothing of the weights before the
first update. The averages lie beside the optimizer's moments, in the state of each parameter: they
are sharded, saved, moved and restored as those are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_pretrain.errors import UserError

STATE = "average"
"""Name of the average in the optimizer's state of a parameter."""
UPDATES = 25
"""Updates in a half-life. More of them move the average by less than the weights move between two,
and cost a pass over the weights each.
"""


class WeightAverage:
    """The average of everything that an optimizer trains.

    Args:
        optimizer: Any optimizer; its parameters are fp32.
        half_life: In tokens.
        tokens_per_step: Inputs of an optimizer step.

    Raises:
        UserError: A parameter has another type, in which small steps are lost.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, half_life: float, tokens_per_step: int
    ) -> None:
        self.optimizer = optimizer
        steps = half_life / tokens_per_step
        self.every = max(1, int(steps / UPDATES))
        """Optimizer steps from one update to the next."""
        self.share = 1.0 - 2.0 ** (-self.every / steps)
        """What the newest weights count at an update, once the average is old."""
        self.seen = 0
        """Optimizer steps."""
        types = {p.dtype for p in self._parameters() if p.dtype != torch.float32}
        if types:
            raise UserError(
                "model.ema_half_life: the weights are"
                f" {str(types.pop()).removeprefix('torch.')}, in which an average loses small"
                " steps; take trainer.precision=bf16-mixed or 32-true"
            )
        # A sharded optimizer is restored into what its first step has made.
        optimizer.register_step_post_hook(lambda *_: self._make())

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
        number = self.seen // self.every
        share = self.share / (1.0 - (1.0 - self.share) ** number)
        parameters = self._parameters()
        averages = [_local(self.optimizer.state[p][STATE]) for p in parameters]
        torch._foreach_lerp_(averages, [_local(p) for p in parameters], share)

    def stored(self, names: Mapping[int, str]) -> dict[str, Any]:
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
