"""Optimizer recipes: settings, parameters grouped by role, AdamW, Muon, any class of torch's kind.

A stage builds its optimizer from an `OptimizerRecipe`. A new optimizer is either a subclass of it
in a file of its own, in this package or in anybody's, or an optimizer class whose first argument is
the parameters, such as those of `torch.optim`, which `TorchOptimizer` wraps. A config names both by
class path. Recipes import torch where they build, so that options can be read without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError, cause_of
from lit_pretrain.optim.schedule import Schedule, factor, span_to_steps
from lit_pretrain.roles import ROLES, Role
from lit_pretrain.transfer import ParameterScale
from lit_pretrain.update_work import UpdateWork, Work, assign_owners

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


_ONE_AXIS: tuple[Role, ...] = ("vector", "scalar", "embedding_scalar")
"""Roles whose parameters have one axis."""


class Moving(NamedTuple):
    """Settings of an optimizer at one step of a run, beside its rates."""

    momentum: float = 0.0
    """Of Muon."""
    decay: float | None = 1.0
    """Share of the weight decay of matrices; None: that of their rate."""


class OptimizerRecipe(ABC):
    """The settings of an optimizer, from which a stage builds it."""

    @abstractmethod
    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build one optimizer over all parameters; `split_by_role` makes its groups.

        Args:
            named_parameters: Names and parameters of the network; frozen ones are left out.
            roles: Role of each parameter, by name.

        Returns:
            An optimizer with one group per role, each with its peak rate in "lr" and "initial_lr"
            and its name in "role".
        """

    def over_run(self, total_steps: int, batch: BatchSizes) -> Callable[[int], Moving]:
        """Resolve the settings that move over a run, beside the rates; by default none do.

        Args:
            total_steps: Optimizer steps of the run.
            batch: Tokens of the optimizer steps.

        Returns:
            Their values as a function of the step.

        Raises:
            UserError: A span cannot be read, or does not fit into the run.
        """
        return lambda step: Moving()

    def follow_run(
        self, optimizer: torch.optim.Optimizer, total_steps: int, batch: BatchSizes
    ) -> None:
        """Let an optimizer that this recipe has built follow `over_run`."""
        return

    @property
    def name(self) -> str:
        """The name of the optimizer in messages."""
        return type(self).__name__

    def moments(self, role: Role) -> int:
        """Count the tensors as large as a parameter of this role that the optimizer keeps for it.

        The planner of memory multiplies with it. By default two, as AdamW keeps.
        """
        return 2

    @property
    def moment_bytes(self) -> int | None:
        """The bytes of a number in these tensors; None for those of the weights."""
        return None

    def update_work(
        self, matrices: Sequence[tuple[int, int]], *, shards: int, copies: int, device: str
    ) -> UpdateWork:
        """Count what an update of all matrices takes that needs them whole.

        By default nothing: the update works element by element, on whatever part a device has.

        Args:
            matrices: Rows and columns of all matrices of the network.
            shards: Devices over which a copy of the network is sharded.
            copies: Of the network.
            device: cpu or cuda.
        """
        return UpdateWork(0.0, 0.0, 0.0)

    def transferred_rate(
        self, role: Role, scale: ParameterScale, shape: tuple[int, ...]
    ) -> float | None:
        """Compute the factor of one parameter's rate under a transfer (`model.transfer`).

        By default None: nobody knows the rules of this optimizer.

        Args:
            role: Role of the parameter.
            scale: What the transfer changes in it.
            shape: Its shape.
        """
        return None


def split_by_role(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    roles: Mapping[str, Role],
    *,
    embedding_scalars_apart: bool = False,
) -> dict[Role, list[nn.Parameter]]:
    """Group the trainable parameters by role, in the order of `ROLES`.

    Roles without a parameter are left out.

    Args:
        named_parameters: Names and parameters of the network. Frozen parameters are dropped; one
            that appears under two names (tied weights) counts once, under the first.
        roles: Role of each parameter, by name.
        embedding_scalars_apart: Give the role embedding_scalar a group of its own; else its
            parameters are among the scalars.

    Raises:
        UserError: A parameter has no role or an unknown one, a matrix has fewer than two
            dimensions, or nothing is trainable.
    """
    known = ", ".join(ROLES)
    groups: dict[Role, list[nn.Parameter]] = {role: [] for role in ROLES}
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        role = roles.get(name)
        if role is None:
            raise UserError(
                f"optimizer: the parameter {name!r} has no role; the network must give it one of"
                f" {known}."
            )
        if role not in ROLES:
            raise UserError(
                f"optimizer: the parameter {name!r} has the unknown role {role!r}; use one of"
                f" {known}."
            )
        if role == "matrix" and parameter.ndim < 2:
            raise UserError(
                f"optimizer: the parameter {name!r} of shape {tuple(parameter.shape)} has the role"
                " 'matrix', which needs two dimensions; 'vector' or 'scalar' is meant."
            )
        if role == "embedding_scalar" and not embedding_scalars_apart:
            role = "scalar"
        groups[role].append(parameter)
    if not seen:
        raise UserError("optimizer: the network has no trainable parameter; check what is frozen.")
    return {role: parameters for role, parameters in groups.items() if parameters}


def decays(role: Role, *, embeddings: bool) -> bool:
    """Tell whether weight decay applies to a role; to tables only if `embeddings`.

    Decay pulls towards zero, which for a gain or a bias is not a simpler model but another
    function: vectors and scalars never decay.
    """
    return role in ("matrix", "head", "adapter") or (
        embeddings and role in ("embedding", "value_embedding")
    )


def check_not_negative(where: str, **settings: float) -> None:
    """Raise a `UserError` for the first setting that is negative or not a number."""
    for name, value in settings.items():
        if not value >= 0.0:
            raise UserError(f"{where}: {name} must be zero or positive, found {value}.")


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Copy the settings of an optimizer's groups, without what it counts in them."""
    return [
        {name: value for name, value in group.items() if name not in ("params", "step")}
        for group in optimizer.param_groups
    ]


def check_moments(recipe: OptimizerRecipe, restored: torch.optim.Optimizer) -> None:
    """Refuse moments of a checkpoint that an optimizer with other settings cannot go on from.

    A small optimizer of the new settings takes a step, and shows what it keeps.

    Raises:
        UserError: It keeps more than the checkpoint holds.
    """
    import torch
    from torch import nn

    for group in restored.param_groups:
        role = group["role"]
        weight = nn.Parameter(torch.ones((64,) if role in _ONE_AXIS else (8, 8)))
        small = recipe.build([("weight", weight)], {"weight": role})
        weight.grad = torch.ones_like(weight)
        small.step()
        needed = {name for name, value in small.state[weight].items() if value is not None}
        state = restored.state[group["params"][0]]
        missing = sorted(needed - {name for name, value in state.items() if value is not None})
        if missing:
            raise UserError(
                f"model.optimizer: with these settings {recipe.name} keeps {', '.join(missing)} for"
                f" the role {role}, which the checkpoint does not hold. Keep the settings that"
                " decide what it keeps, or take the weights alone with --from."
            )


# ------------------------------------------------------------------ AdamW


MomentDtype = Literal["bf16"]


class AdamWGroup(TypedDict):
    """A parameter group of `torch.optim.AdamW`, with its role."""

    params: list[nn.Parameter]
    role: Role
    lr: float
    initial_lr: float
    weight_decay: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class AdamW(OptimizerRecipe):
    """Recipe for `torch.optim.AdamW` (Loshchilov & Hutter 2019) with one group per role."""

    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per step of the first and the second moment."""
    role_betas: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Other betas by role, such as `{embedding: [0.8, 0.995]}`; `lr_scale` names the roles."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and the output head, multiplied by the learning rate."""
    decay_embeddings: bool = True
    """Whether embeddings decay too. Norms, biases and scalars never do."""
    lr_scale: dict[str, float] = field(default_factory=dict)
    """Multipliers of the learning rate by role (matrix, embedding, value_embedding, head,
    vector, scalar, embedding_scalar, adapter). embedding_scalar, by which embeddings are added to
    the residual stream, is one group with scalar where it is not named.
    """
    moment_dtype: MomentDtype | None = None
    """bf16: moments take half of the memory beside fp32 weights, and are rounded at random, so that
    small changes count on average. Default: they have the type of their weights.
    """

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.eps, self.role_betas, where="AdamW")
        check_not_negative("AdamW", lr=self.lr, weight_decay=self.weight_decay, **self.lr_scale)
        check_roles("AdamW", "lr_scale", self.lr_scale)

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build it, each group with the learning rate and the weight decay of its role."""
        import torch

        groups: list[AdamWGroup] = []
        split = split_by_role(
            named_parameters,
            roles,
            embedding_scalars_apart="embedding_scalar" in {*self.lr_scale, *self.role_betas},
        )
        for role, parameters in split.items():
            lr = self.lr * self.lr_scale.get(role, 1.0)
            decay = self.weight_decay if decays(role, embeddings=self.decay_embeddings) else 0.0
            groups.append(
                AdamWGroup(
                    params=parameters, role=role, lr=lr, initial_lr=lr, weight_decay=decay,
                    betas=self.role_betas.get(role, self.betas),
                )
            )  # fmt: skip
        if self.moment_dtype == "bf16":
            from lit_pretrain.optim.half_moments import HalfAdamW

            return HalfAdamW([dict(group) for group in groups], betas=self.betas, eps=self.eps)
        fused = can_fuse(parameter for group in groups for parameter in group["params"])
        return torch.optim.AdamW(
            [dict(group) for group in groups],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=fused or None,
        )

    @property
    def moment_bytes(self) -> int | None:
        """Two where they are bf16."""
        return 2 if self.moment_dtype == "bf16" else None

    def transferred_rate(
        self, role: Role, scale: ParameterScale, shape: tuple[int, ...]
    ) -> float | None:
        """Return the factor under Adam, whose steps are as large as the rate."""
        return scale.rate


def can_fuse(parameters: Iterable[Tensor]) -> bool:
    """Tell whether torch's fused kernel takes all of these parameters.

    It is 7 times as fast as the loop over tensors on a CPU.
    """
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def check_adamw(
    betas: tuple[float, float],
    eps: float,
    role_betas: Mapping[str, tuple[float, float]],
    *,
    where: str,
) -> None:
    """Raise a `UserError` for settings that AdamW cannot use."""
    check_roles(where, "role_betas", role_betas)
    settings = {"betas": betas} | {f"role_betas[{role}]": own for role, own in role_betas.items()}
    for name, found in settings.items():
        if len(found) != 2 or not all(0.0 <= beta < 1.0 for beta in found):
            raise UserError(f"{where}: {name} must be two numbers in [0, 1), found {found}.")
    check_not_negative(where, eps=eps)


def check_roles(where: str, setting: str, names: Iterable[str]) -> None:
    """Raise a `UserError` for the first name that is no role."""
    unknown = sorted(set(names) - set(ROLES))
    if unknown:
        raise UserError(
            f"{where}: {setting} names the unknown role {unknown[0]!r}; use one of"
            f" {', '.join(ROLES)}."
        )


# ------------------------------------------------------------------ classes of torch's kind


class TorchOptimizer(OptimizerRecipe):
    """Recipe for an optimizer class that takes its parameters first, as those of `torch.optim` do.

    All roles have the same learning rate. Roles that never decay have no weight decay.

    Args:
        make: Makes the optimizer from parameter groups; a `functools.partial` of its class.
    """

    def __init__(self, make: Callable[..., torch.optim.Optimizer]) -> None:
        self.make = make

    @property
    def name(self) -> str:
        """The name of the class that is wrapped."""
        made: object = getattr(self.make, "func", self.make)
        return f"{getattr(made, '__module__', '')}.{getattr(made, '__qualname__', made)}"

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build it, with no weight decay for the roles that never decay.

        Raises:
            UserError: The optimizer does not take these groups.
        """
        import torch

        groups = [
            {"params": parameters, "role": role}
            | ({} if decays(role, embeddings=True) else {"weight_decay": 0.0})
            for role, parameters in split_by_role(named_parameters, roles).items()
        ]
        try:
            optimizer = self.make(groups)
        except UserError:
            raise
        except Exception as error:  # whatever a class of the user's raises
            raise UserError(
                f"model.optimizer: {self.name} refuses one group of parameters for each role"
                f" ({', '.join(str(group['role']) for group in groups)}): {cause_of(error)}. Change"
                " its options, or take another optimizer."
            ) from error
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"model.optimizer: {self.name} returned {type(optimizer).__name__}, which is no"
                " torch.optim.Optimizer; name the class path of one."
            )
        if not hasattr(optimizer, "param_groups"):
            raise UserError(
                f"model.optimizer: {self.name} has no param_groups: its constructor must call"
                " super().__init__(params, defaults)."
            )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def moments(self, role: Role) -> int:
        """Count them after one step on a small parameter.

        Raises:
            UserError: The optimizer cannot take a step.
        """
        import torch
        from torch import nn

        weight = nn.Parameter(torch.ones((64,) if role in _ONE_AXIS else (8, 8)))
        optimizer = self.build([("weight", weight)], {"weight": role})
        weight.grad = torch.ones_like(weight)
        try:
            optimizer.step()
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"model.optimizer: {self.name} cannot update a dense parameter from its gradient"
                f" alone: {error}. Take another optimizer."
            ) from error
        kept = optimizer.state[weight].values()
        return sum(1 for value in kept if torch.is_tensor(value) and value.shape == weight.shape)


def recipe_of(optimizer: OptimizerRecipe | Callable[..., torch.optim.Optimizer]) -> OptimizerRecipe:
    """Return a recipe as it is, and wrap what makes an optimizer of torch's kind."""
    return optimizer if isinstance(optimizer, OptimizerRecipe) else TorchOptimizer(optimizer)


def momentum_at(done: int, warmup: int, momentum: float, start: float) -> float:
    """Raise the momentum linearly from `start`; it would be `momentum` after the warm-up."""
    return start + (momentum - start) * done / warmup


_SHARED_FROM = {"cpu": 64, "cuda": 2048}
"""Shorter side from which copies of a network share the work on a matrix: each makes some of the
updates and sends them to the others. Orthogonalising takes some 15 multiplications and additions
for each weight and channel of the shorter side, sending 2 bytes for each weight: at 0.8 PFLOP/s
and 40 GB/s between machines (H100) both take as long for 1,300 channels.
"""


def copies_share(rows: int, columns: int, device: str) -> bool:
    """Tell whether copies of a network share the work on a matrix; else each makes its own."""
    return min(rows, columns) >= _SHARED_FROM["cpu" if device == "cpu" else "cuda"]


def orthogonalization_flops(rows: int, columns: int, iterations: int) -> float:
    """Count the products of the iterations of Muon, which need the whole matrix.

    Jordan et al. (2024): a Gram matrix, its square and a product with the matrix. Where two
    iterations share a pass, it is less.
    """
    short, long = sorted((rows, columns))
    return iterations * (4.0 * short**2 * long + 2.0 * short**3)


LrScaling = Literal["original", "match_rms_adamw"]
Orthogonalization = Literal["polar_express", "newton_schulz"]
WeightDecaySchedule = Literal["rate", "linear", "cosine"]


@dataclass(frozen=True)
class MuonAdamW(OptimizerRecipe):
    """Recipe for Muon (Jordan et al. 2024) on matrices and AdamW on everything else."""

    matrix_lr: float = 0.02
    """Peak learning rate of matrices (Muon); see `lr_scaling`."""
    embedding_lr: float = 0.3
    """Peak learning rate of token (and position) embeddings (AdamW)."""
    value_embedding_lr: float = 0.3
    """Peak learning rate of value embeddings (AdamW)."""
    head_lr: float = 0.004
    """Peak learning rate of the output head (AdamW)."""
    vector_lr: float = 0.01
    """Peak learning rate of norms and biases (AdamW)."""
    scalar_lr: float = 0.1
    """Peak learning rate of scalars (AdamW)."""
    embedding_scalar_lr: float | None = None
    """Peak learning rate of the scalars by which embeddings are added to the residual stream
    (AdamW). Default: scalar_lr.
    """
    adapter_lr: float = 2e-4
    """Peak learning rate of the factors of low-rank updates (AdamW): one of them begins at
    zero, which has no orthogonal part.
    """
    betas: tuple[float, float] = (0.8, 0.95)
    """Decay per step of AdamW's first and second moment."""
    role_betas: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Other betas by role (embedding, value_embedding, head, vector, scalar, embedding_scalar,
    adapter), such as `{embedding: [0.8, 0.995]}`.
    """
    eps: float = 1e-10
    """Added to the root of AdamW's second moment."""
    adamw_weight_decay: float = 0.0
    """Decoupled weight decay of embeddings and head, multiplied by their learning rate. Vectors
    and scalars never decay.
    """
    momentum: float = 0.95
    """Momentum of Muon, an exponential average of the gradients."""
    momentum_start: float = 0.85
    """Momentum at the first step."""
    momentum_warmup_steps: int = 300
    """Optimizer steps over which the momentum rises from `momentum_start` to `momentum`; 0 for
    none.
    """
    momentum_warmup: str | None = None
    """The same as a span with a unit, such as "20%" of the run or "1M tokens"; replaces
    `momentum_warmup_steps`.
    """
    momentum_cooldown: str | None = None
    """Span at the end of the run over which the momentum falls linearly. Default: none."""
    momentum_final: float | None = None
    """Momentum at the end of `momentum_cooldown`. Default: `momentum_start`."""
    nesterov: bool = True
    """Whether Muon looks ahead by one step of momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, multiplied by their learning rate (before
    `lr_scaling`).
    """
    weight_decay_schedule: WeightDecaySchedule | None = None
    """How the weight decay of matrices falls over the run, beside their rate. rate: as the rate
    does, so that a step decays with its square. linear, cosine: from the first step to zero at the
    end. Default: it stays.
    """
    cautious: bool = False
    """Whether weight decay is withheld from weights that the update moves away from zero (Chen
    et al. 2025).
    """
    lr_scaling: LrScaling = "original"
    """original: times sqrt(max(1, rows / columns)) (Jordan et al. 2024). match_rms_adamw: times 0.2
    * sqrt(max(rows, columns)), so that AdamW's rates and decay carry over (Liu et al. 2025).
    """
    orthogonalization: Orthogonalization = "polar_express"
    """polar_express: coefficients that change from iteration to iteration (Amsel et al. 2025).
    newton_schulz: the fixed ones of Jordan et al. (2024), as in `torch.optim.Muon`.
    """
    iterations: int = 5
    """Iterations of the orthogonalisation."""
    update_beta2: float | None = None
    """Decay per step of a second moment of the orthogonalised update, by which each of its rows (of
    a wide matrix each column) is divided; the norm of the whole stays (NorMuon, Li et al. 2025;
    nanochat: 0.9). Default: off.
    """
    moment_dtype: MomentDtype | None = None
    """bf16: moments take half of the memory beside fp32 weights, and are rounded at random, so that
    small changes count on average. Default: they have the type of their weights.
    """

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.eps, self.role_betas, where="MuonAdamW")
        if "matrix" in self.role_betas:
            raise UserError(
                "MuonAdamW: role_betas names matrix, but Muon's matrices have a momentum and no"
                " betas; set momentum."
            )
        check_not_negative(
            "MuonAdamW",
            **{f"{role}_lr": rate for role, rate in self._rates().items()},
            weight_decay=self.weight_decay,
            adamw_weight_decay=self.adamw_weight_decay,
        )
        for name in ("momentum", "momentum_start", "momentum_final"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"MuonAdamW: {name} must lie in [0, 1), found {value}.")
        if self.momentum_final is not None and self.momentum_cooldown is None:
            raise UserError(
                f"MuonAdamW: momentum_final={self.momentum_final} has no effect without"
                " momentum_cooldown, the span over which the momentum falls to it; give both."
            )
        if self.update_beta2 is not None and not 0.0 <= self.update_beta2 < 1.0:
            raise UserError(
                f"MuonAdamW: update_beta2 must lie in [0, 1), found {self.update_beta2}; null"
                " switches it off."
            )
        if self.momentum_warmup_steps < 0:
            raise UserError(
                "MuonAdamW: momentum_warmup_steps must be zero or positive, found"
                f" {self.momentum_warmup_steps}."
            )
        # The polynomials of Polar Express are known for these numbers of iterations only.
        known = (3, 4, 5)
        if self.iterations < 1 or (
            self.orthogonalization == "polar_express" and self.iterations not in known
        ):
            raise UserError(
                f"MuonAdamW: iterations={self.iterations} is not possible with"
                f" {self.orthogonalization}; use 3, 4 or 5, or any positive number with"
                " orthogonalization: newton_schulz."
            )

    def over_run(self, total_steps: int, batch: BatchSizes) -> Callable[[int], Moving]:
        """Resolve momentum and weight decay of the matrices."""
        batch, prefix = batch.planned, "model.optimizer.momentum"
        warmup = self.momentum_warmup_steps
        setting = f"{prefix}_warmup_steps: {warmup}"
        if self.momentum_warmup is not None:
            setting = f"{prefix}_warmup: {self.momentum_warmup!r}"
            warmup = span_to_steps(
                self.momentum_warmup, total_steps, batch, name=f"{prefix}_warmup"
            )
        cooldown = span_to_steps(
            self.momentum_cooldown or "0", total_steps, batch, name=f"{prefix}_cooldown", ends=True
        )
        fall = total_steps - cooldown
        if warmup > fall and (cooldown or self.momentum_warmup is not None):
            if cooldown:
                setting += f" and {prefix}_cooldown: {self.momentum_cooldown!r}"
            raise UserError(
                f"{setting} take {warmup + cooldown} steps, more than the run of {total_steps} has;"
                " shorten them (momentum_warmup takes a share of the run, as '20%'), or train"
                " longer."
            )
        decay = None
        if self.weight_decay_schedule in ("linear", "cosine"):
            decay = Schedule(kind=self.weight_decay_schedule).in_steps(total_steps, batch)
        final = self.momentum_start if self.momentum_final is None else self.momentum_final
        # A warm-up in steps moves with the steps, as it always has; a span with the tokens.
        read = batch.first if self.momentum_warmup is not None else int

        def at(step: int) -> Moving:
            if step < warmup:
                momentum = momentum_at(read(step), read(warmup), self.momentum, self.momentum_start)
            else:
                left = factor(step, total_steps, kind="wsd", decay_start=fall, batch=batch)
                momentum = final + (self.momentum - final) * left if cooldown else self.momentum
            if self.weight_decay_schedule == "rate":
                return Moving(momentum, None)
            return Moving(momentum, 1.0 if decay is None else decay(step))

        return at

    def follow_run(
        self, optimizer: torch.optim.Optimizer, total_steps: int, batch: BatchSizes
    ) -> None:
        """Let the momentum and the weight decay of Muon follow the run."""
        from lit_pretrain.optim.muon import MuonWithAdamW

        if isinstance(optimizer, MuonWithAdamW):
            optimizer.over_run = self.over_run(total_steps, batch)

    def _rates(self) -> dict[Role, float]:
        """Return the peak rate of each role."""
        rates = {role: getattr(self, f"{role}_lr") for role in ROLES}
        if rates["embedding_scalar"] is None:
            rates["embedding_scalar"] = self.scalar_lr
        return rates

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
    ) -> torch.optim.Optimizer:
        """Build one optimizer whose groups name their algorithm."""
        from lit_pretrain.optim.muon import MuonWithAdamW

        groups: list[dict[str, Any]] = []
        split = split_by_role(
            named_parameters,
            roles,
            embedding_scalars_apart=self.embedding_scalar_lr is not None
            or "embedding_scalar" in self.role_betas,
        )
        for role, parameters in split.items():
            lr = self._rates()[role]
            group: dict[str, Any] = {"params": parameters, "role": role, "lr": lr, "initial_lr": lr}
            if role == "matrix":
                group |= {
                    "algorithm": "muon",
                    "step": 0,
                    "momentum": self.momentum,
                    "momentum_start": self.momentum_start,
                    "momentum_warmup_steps": self.momentum_warmup_steps,
                    "nesterov": self.nesterov,
                    "weight_decay": self.weight_decay,
                    "cautious": self.cautious,
                    "lr_scaling": self.lr_scaling,
                    "orthogonalization": self.orthogonalization,
                    "iterations": self.iterations,
                }
                if self.update_beta2 is not None:
                    group["update_beta2"] = self.update_beta2
            else:
                group |= {
                    "algorithm": "adamw",
                    "betas": self.role_betas.get(role, self.betas),
                    "eps": self.eps,
                    "weight_decay": self.adamw_weight_decay
                    if decays(role, embeddings=True)
                    else 0.0,
                    "fused": can_fuse(parameters),
                }
            groups.append(group)
        return MuonWithAdamW(groups, half=self.moment_dtype == "bf16")

    @property
    def moment_bytes(self) -> int | None:
        """Two where they are bf16."""
        return 2 if self.moment_dtype == "bf16" else None

    def moments(self, role: Role) -> int:
        """Count one moment for a matrix (Muon's momentum) and two for the rest (AdamW).

        That of `update_beta2` has one number for a row or a column, and is no such tensor.
        """
        return 1 if role == "matrix" else 2

    def update_work(
        self, matrices: Sequence[tuple[int, int]], *, shards: int, copies: int, device: str
    ) -> UpdateWork:
        """Count the orthogonalisation of what the busiest device owns, and what travels for it.

        It travels in bf16, to the owner and back. The owner gets the parts of one copy, and returns
        the result to all copies for which it works.
        """
        works = []
        within = across = 0.0
        for rows, columns in matrices:
            cost = orthogonalization_flops(rows, columns, self.iterations)
            part = 2.0 * rows * columns / shards
            if copies > 1 and copies_share(rows, columns, device):
                works.append(Work(cost, range(shards * copies)))
                within, across = within + part / copies, across + part
            else:
                # All copies make the same.
                works.append(Work(cost, range(shards)))
                within += 2 * part
        loads = [0.0] * (shards * copies)
        for work, owner in zip(works, assign_owners(works, shards * copies), strict=True):
            loads[owner] += work.cost
        return UpdateWork(max(loads), within, across)

    def transferred_rate(
        self, role: Role, scale: ParameterScale, shape: tuple[int, ...]
    ) -> float | None:
        """Keep the spectral norm of a matrix's steps at sqrt(outputs / inputs), relative to base.

        A step then changes the output by as much at any width (Yang et al. 2023, "A Spectral
        Condition for Feature Learning"). What `lr_scaling` does already is taken out.
        """
        if role != "matrix":
            return scale.rate
        from lit_pretrain.optim.muon import lr_multiplier

        rows, columns = shape[-2:]
        base = lr_multiplier(self.lr_scaling, rows / scale.fan_out, columns / scale.fan_in)
        wanted = scale.fold * math.sqrt(scale.fan_out / scale.fan_in)
        return wanted * base / lr_multiplier(self.lr_scaling, rows, columns)
