"""LayerStatistics: what happens in every layer, looked at every so many optimizer steps.

Sums of squares, counts and largest values are taken on every rank of what it alone holds, added
over all ranks, and divided once.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_pretrain.callbacks.metrics import Sink
from lit_pretrain.errors import UserError
from lit_pretrain.model.observation import PLACES, Observation, sums_of
from lit_pretrain.parallel.strategy import local_part


class LayerStatistics(L.Callback):
    """Tell sinks the statistics of the layers in every `every`-th optimizer step.

    Args:
        every: Optimizer steps between two looks; 0 never looks, and costs nothing.
        sinks: Receive the step and the figures; called on rank 0 only.
    """

    def __init__(self, every: int, *, sinks: Sequence[Sink]) -> None:
        if every < 0:
            raise UserError(f"statistics_every={every} must not be negative; 0 looks at no step")
        self.every = every
        self.sinks = sinks
        self._observation: Observation | None = None
        self._weights: WeightSums | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Watch the network, before its first pass compiles it."""
        if self.every:
            self._observation = Observation(pl_module.net)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Begin to look, if it is time."""
        if self._observation is not None and (trainer.global_step + 1) % self.every == 0:
            self._weights = WeightSums(trainer)
            self._observation.begin()

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        """Look at the gradients, before they are clipped, and at the weights."""
        if self._weights is not None:
            self._weights.before_update()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Look at what has become of the weights, and tell the sinks all of it."""
        if self._weights is None:
            return
        assert self._observation is not None
        seen = over_ranks(trainer, self._observation.end())
        layers = {
            f"layers/{place}_{name}/{layer:0{_digits(len(seen))}}": value
            for p, place in enumerate(PLACES)
            for layer, its in enumerate(seen)
            for name, value in figures(its[p]).items()
        }
        weights = self._weights.after_update(float(pl_module.sums["grad_scale"]))
        self._weights = None
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(trainer.global_step, layers | weights)


def figures(sums: Sequence[float]) -> dict[str, float]:
    """Turn the sum of squares, count and largest value into RMS and maximum; none of nothing."""
    squares, count, largest = sums
    return {"rms": math.sqrt(squares / count), "max": largest} if count else {}


def over_ranks(trainer: L.Trainer, sums: Tensor) -> list[Any]:
    """Add sums (..., 3) of what each rank alone holds over all ranks, and read them.

    All ranks call this together.
    """
    if trainer.world_size > 1:
        # What is no number would be lost in the maximum, whose order of comparison is anybody's.
        largest = sums[..., 2].nan_to_num(nan=math.inf, posinf=math.inf)
        reduce = trainer.strategy.reduce
        sums = torch.cat(
            [
                reduce(sums[..., :2].contiguous(), None, reduce_op="sum"),
                reduce(largest, None, reduce_op="max")[..., None],
            ],
            dim=-1,
        )
    found: list[Any] = sums.tolist()
    return found


class LayerFigures(NamedTuple):
    """What the parameters of a layer or of a role went through in one optimizer step."""

    gradient_rms: float
    gradient_max: float
    update_ratio: float | None
    """Norm of the update by that of the weights before; None if these are zero or there was no
    update.
    """


class WeightSums:
    """Sums over gradients and updates of one optimizer step, by role and by layer.

    Args:
        trainer: Lightning's, whose first optimizer has a group for each role.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        names = {id(p): name for name, p in trainer.lightning_module.named_parameters()}
        self.names: list[str] = []
        """Of the trained parameters."""
        self._parameters: list[nn.Parameter] = []
        self._roles: list[str] = []
        for number, group in enumerate(trainer.optimizers[0].param_groups):
            for parameter in group["params"]:
                self.names.append(names[id(parameter)].removeprefix("net."))
                self._parameters.append(parameter)
                self._roles.append(str(group.get("role", number)))
        self.layers = {name: layer_of(name) for name in self.names}
        """The layer of each; None outside of the blocks."""
        self.not_finite: list[str] = []
        """Parameters whose gradient is not finite; known once the sums are."""
        self._before: list[Tensor] = []
        self._gradients: list[Tensor] = []

    @torch.no_grad()
    def before_update(self) -> None:
        """Look at the gradients, and keep the weights."""
        self._gradients = [
            torch.zeros(3, dtype=torch.float64, device=p.device)
            if p.grad is None
            else self._own(p.grad)
            for p in self._parameters
        ]
        self._before = [local_part(p).clone() for p in self._parameters]

    @torch.no_grad()
    def sums(self) -> list[list[list[float]]]:
        """Sum over all ranks, after the update: for each parameter gradient, weight, update."""
        found = []
        for parameter, before, gradient in zip(
            self._parameters, self._before, self._gradients, strict=True
        ):
            after = local_part(parameter)
            update = (after - before).view_as(after)
            found += [gradient, self._own(before, of=parameter), self._own(update, of=parameter)]
        self._before = []
        device = self._trainer.strategy.root_device
        stacked = torch.stack([its.to(device) for its in found]).view(-1, 3, 3)
        return over_ranks(self._trainer, stacked)

    def after_update(self, scale: float) -> dict[str, float]:
        """Name the figures of each layer and role as metrics.

        Args:
            scale: What the gradients of sums are multiplied by.
        """
        layers, roles = self.by_layer_and_role(scale)
        width = _digits(1 + max(layers, default=0))
        named = {f"layers/{{}}/{layer:0{width}}": its for layer, its in layers.items()}
        named |= {f"roles/{{}}/{role}": its for role, its in roles.items()}
        return {
            name.format(figure): value
            for name, its in named.items()
            for figure, value in its._asdict().items()
            if value is not None
        }

    def by_layer_and_role(
        self, scale: float
    ) -> tuple[dict[int, LayerFigures], dict[str, LayerFigures]]:
        """Return the figures of each layer and of each role; all ranks call this together."""
        layers: dict[int, list[list[list[float]]]] = {}
        roles: dict[str, list[list[list[float]]]] = {}
        for name, role, sums in zip(self.names, self._roles, self.sums(), strict=True):
            if not math.isfinite(sums[0][0]):
                self.not_finite.append(name)
            roles.setdefault(role, []).append(sums)
            if (layer := self.layers[name]) is not None:
                layers.setdefault(layer, []).append(sums)
        return (
            {layer: _figures(layers[layer], scale) for layer in sorted(layers)},
            {role: _figures(its, scale) for role, its in roles.items()},
        )

    def _own(self, tensor: Tensor, of: Tensor | None = None) -> Tensor:
        """Sum this rank's part of a tensor, so that all ranks together count every element once.

        Args:
            tensor: A gradient, or the local part of a weight.
            of: The parameter whose part it is.
        """
        whole = tensor if of is None else of
        local = local_part(tensor)
        holders = self._trainer.world_size
        if isinstance(whole, DTensor):
            for size, placement in zip(whole.device_mesh.shape, whole.placements, strict=True):
                holders //= size if placement.is_shard() else 1
        if local.numel() == 0:  # a small parameter has fewer rows than there are ranks
            return torch.zeros(3, dtype=torch.float64, device=local.device)
        sums = sums_of(local)
        sums[:2] /= holders
        return sums


def layer_of(name: str) -> int | None:
    """Read the layer from a parameter's name; None if it lies outside of the blocks."""
    room, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if room == "blocks" else None


def _figures(parts: list[list[list[float]]], scale: float) -> LayerFigures:
    """Divide the sums of several parameters, each of gradient, weight and update."""
    gradient, weight, update = (
        [math.fsum(part[i][0] for part in parts), math.fsum(part[i][1] for part in parts)]
        for i in range(3)
    )
    largest = max(
        (part[0][2] for part in parts), key=lambda value: math.inf if math.isnan(value) else value
    )
    return LayerFigures(
        gradient_rms=scale * math.sqrt(gradient[0] / max(gradient[1], 1.0)),
        gradient_max=scale * largest,
        update_ratio=math.sqrt(update[0] / weight[0]) if weight[0] else None,
    )


def _digits(count: int) -> int:
    return len(str(count - 1))
