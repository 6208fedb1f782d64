"""NoiseScale: the gradient noise scale, measured in every so many optimizer steps.

A hook on every trained weight takes the norm of its gradient in each micro-batch, before gradients
are added up. So a measured step costs one more pass over the gradients of every micro-batch, and
changes no bit of the run. On several ranks each has gradients of its own until they are reduced:
every micro-batch of every rank counts.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from lit_pretrain.callbacks.metrics import Sink
from lit_pretrain.checkpoint.layout import NOISE_KEY, CheckpointEntries
from lit_pretrain.errors import UserError
from lit_pretrain.optim.gradient_noise import Noise, NoiseScales, noise_of
from lit_pretrain.parallel.strategy import sum_over_tokens, token_ranks
from lit_pretrain.step_size import Division, MeshSizes


def check_noise_scale(every: int, division: Division, sizes: MeshSizes | None) -> None:
    """Refuse to measure where there is nothing to compare.

    Args:
        every: Optimizer steps between two measurements; 0: none.
        division: Of a step.
        sizes: Of the mesh, if there is one.

    Raises:
        UserError: A step is a single micro-batch, or devices share rows or matrices.
    """
    if every < 0:
        raise UserError(f"noise_scale_every={every} must not be negative; 0 measures in no step")
    if every == 0:
        return
    if sizes is not None and sizes.together > 1:
        axes = " and ".join(
            f"parallel.{axis}={size}"
            for axis, size in (("tp", sizes.tp), ("cp", sizes.cp))
            if size > 1
        )
        raise UserError(
            f"noise_scale_every={every} compares gradients of different rows, and with {axes}"
            " devices have parts of the gradient of the same rows: set noise_scale_every: 0, or use"
            " parallel.dp_shard instead"
        )
    if division.devices * division.micro_batches < 2:
        rows = division.micro_batch_size
        instead = (
            f"set data.micro_batch_size to {rows // 2} or less"
            if rows > 1
            else "raise the batch (data.global_batch_tokens, or data.global_batch_rows)"
        )
        raise UserError(
            f"noise_scale_every={every} compares the gradients of the micro-batches of a step, and"
            f" a step is one micro-batch on one device: {instead}, or set noise_scale_every: 0"
        )


class NoiseScale(L.Callback):
    """Tell sinks the noise scale of every role in every `every`-th optimizer step.

    Args:
        every: Optimizer steps between two measurements; 0 never measures, and costs nothing.
        sinks: Receive the step and the figures; called on rank 0 only.
    """

    def __init__(self, every: int, *, sinks: Sequence[Sink]) -> None:
        self.every = every
        self.sinks = sinks
        self.scales = NoiseScales()
        self._step: MeasuredStep | None = None
        self._found: dict[str, Noise] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: CheckpointEntries
    ) -> None:
        """Keep the averages, so that a resumed run tells the same."""
        if self.scales.measured:
            checkpoint[NOISE_KEY] = self.scales.state()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: CheckpointEntries
    ) -> None:
        """Take up the averages again."""
        if NOISE_KEY in checkpoint:
            self.scales.load_state(checkpoint[NOISE_KEY])

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Begin to measure, if it is time."""
        if self.every and (trainer.global_step + 1) % self.every == 0:
            self._step = MeasuredStep(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        """Compare the micro-batches with the whole step, before its gradient is clipped."""
        if self._step is not None:
            self._found = self._step.end()
            self._step = None

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Tell the sinks, once the step has been made."""
        found, self._found = self._found, None
        if found is None:
            return
        self.scales.add(found)
        told = {f"noise_scale/{role}": tokens for role, tokens in self.scales.scales().items()}
        for role, noise in found.items():
            told[f"gradient_variance/{role}"] = noise.variance
            told[f"gradient_signal/{role}"] = noise.signal
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(trainer.global_step, told)


class MeasuredStep:
    """The gradients of one optimizer step, as norms by micro-batch and role.

    Args:
        trainer: Lightning's, whose first optimizer has a group for each role.
        stage: What trains.
    """

    def __init__(self, trainer: L.Trainer, stage: Any) -> None:
        self._trainer, self._stage = trainer, stage
        groups = trainer.optimizers[0].param_groups
        self._parameters: list[tuple[str, nn.Parameter]] = [
            (str(group.get("role", number)), parameter)
            for number, group in enumerate(groups)
            for parameter in group["params"]
        ]
        self._roles = list(dict.fromkeys(role for role, _ in self._parameters))
        self._norms: list[dict[str, list[Tensor]]] = []
        self._hooks: list[RemovableHandle] = [
            parameter.register_hook(lambda grad, role=role: self._take(grad, role))
            for role, parameter in self._leaves()
        ]

    def _leaves(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what a backward pass gives gradients to: of a sharded weight, the gathered one."""
        role_of = {id(parameter): role for role, parameter in self._parameters}
        sharded = {name: role_of.get(id(p)) for name, p in self._stage.named_parameters()}
        yield from ((r, p) for r, p in self._parameters if not isinstance(p, DTensor))
        for place, module in self._stage.named_modules():
            if not isinstance(module, FSDPModule):
                continue
            assert isinstance(module, nn.Module)
            module.unshard()
            for name, parameter in module.named_parameters():
                role = sharded[f"{place}.{name}"]
                # What lies in a module further down is gathered there.
                if role is not None and not isinstance(parameter, DTensor):
                    yield role, parameter
            module.reshard()

    def _take(self, grad: Tensor, role: str) -> None:
        """Take the norm of a gradient of the micro-batch that is being computed."""
        while len(self._norms) < len(self._stage.denominators):
            self._norms.append({})
        dtype = torch.promote_types(grad.dtype, torch.float32)
        norm = torch.linalg.vector_norm(grad, dtype=dtype)
        self._norms[-1].setdefault(role, []).append(norm)

    @torch.no_grad()
    def end(self) -> dict[str, Noise] | None:
        """Return what the step says of every role; None if it says nothing.

        All ranks call this together, once gradients are reduced and before they are scaled.
        """
        for hook in self._hooks:
            hook.remove()
        trainer, device = self._trainer, self._trainer.strategy.root_device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        squares = {role: zero.clone() for role in self._roles}
        units = inverse = tokens = zero
        for norms, count in zip(self._norms, self._stage.denominators, strict=True):
            count = count.to(zero)
            # A micro-batch without anything to learn from has no mean.
            some = (count > 0).to(zero)
            square = some / count.clamp(min=1.0).square()
            for role, its in norms.items():
                squares[role] += square * torch.stack(its).to(device).double().square().sum()
            units, tokens = units + some, tokens + count
            inverse = inverse + some / count.clamp(min=1.0)
        wholes = {role: zero.clone() for role in self._roles}
        for role, parameter in self._parameters:
            if parameter.grad is not None:
                wholes[role] += self._own_square(parameter.grad).to(device)
        inputs = sum(micro.tokens_BT.numel() for micro in self._stage.batch)
        sums = [units, inverse, tokens, zero + inputs, *squares.values(), *wholes.values()]
        total = sum_over_tokens(trainer.strategy, torch.stack(sums)).tolist()
        count, inverses, terms, read, *rest = total
        if count < 2 or not all(map(math.isfinite, total)):
            return None
        # Strategies average gradients of sums over ranks; and one of `terms`, which are what a loss
        # is a mean over, stands for so many tokens of the batch.
        scale, unit = token_ranks(trainer) / terms, read / terms
        by_role = {
            role: noise_of(
                mean / count,
                whole * scale**2,
                mean_inverse=inverses / count / unit,
                tokens=read,
            )
            for role, mean, whole in zip(
                self._roles, rest[: len(self._roles)], rest[len(self._roles) :], strict=True
            )
        }
        # Squares add up over parameters, and with them variances and signals.
        return {"all": Noise(*map(math.fsum, zip(*by_role.values(), strict=True))), **by_role}

    def _own_square(self, grad: Tensor) -> Tensor:
        """Return this rank's share of a gradient's squared norm; those of all ranks add up."""
        local, holders = grad, self._trainer.world_size
        if isinstance(grad, DTensor):
            local = grad.to_local()
            for size, placement in zip(grad.device_mesh.shape, grad.placements, strict=True):
                holders //= size if placement.is_shard() else 1
        dtype = torch.promote_types(local.dtype, torch.float32)
        square: Tensor = torch.linalg.vector_norm(local, dtype=dtype).double().square()
        return square / holders
