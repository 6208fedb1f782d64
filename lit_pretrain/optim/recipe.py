"""Recipe: what the configuration of an optimizer offers, and parameters grouped by role.

A new optimizer is a subclass of `OptimizerRecipe` in a file of its own, in this package or in
anybody's, named by its class path. Recipes are read by the planner, which does not wait for torch:
they import it where they build.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lit_pretrain.errors import UserError
from lit_pretrain.roles import ROLES, Role

if TYPE_CHECKING:
    import torch
    from torch import nn


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

    @classmethod
    def moments(cls, role: Role) -> int:
        """Count the tensors as large as a parameter of this role that the optimizer keeps for it.

        The planner of memory multiplies with it. By default two, as AdamW keeps.
        """
        return 2


def split_by_role(
    named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, Role]
) -> dict[Role, list[nn.Parameter]]:
    """Group the trainable parameters by role, in the order of `ROLES`.

    Roles without a parameter are left out.

    Args:
        named_parameters: Names and parameters of the network. Frozen parameters are dropped; one
            that appears under two names (tied weights) counts once, under the first.
        roles: Role of each parameter, by name.

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
