"""Roles: what each parameter is to an optimizer, as declared by the module that owns it.

A role never follows from the number of axes: a stack of expert matrices (experts, out, in) has
three and is as much a matrix as a weight with two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

from lit_pretrain.errors import UserError

if TYPE_CHECKING:  # The planner reads roles without waiting for torch.
    from torch import nn

Role = Literal[
    "matrix", "embedding", "value_embedding", "head", "vector", "scalar", "embedding_scalar",
    "adapter",
]  # fmt: skip
"""matrix: a weight that multiplies activations within a block, (..., out, in), alone or in a stack.
embedding, value_embedding: tables that are looked up; a tied head is an embedding. head: the output
projection, also that of a reward model. vector: gains of norms, biases. scalar: single gains.
embedding_scalar: those by which embeddings are added to the residual stream, which an optimizer
treats as scalars unless it is told otherwise. adapter: a factor of a low-rank update.
"""

ROLES: tuple[Role, ...] = get_args(Role)


@runtime_checkable
class DeclaresRoles(Protocol):
    """A module that declares the roles of parameters below it."""

    roles: Mapping[str, Role]
    """Role by name relative to the module: of a parameter (`weight`) or of all parameters of a
    child (`head`, `experts.up`).
    """


def parameter_roles(module: nn.Module) -> dict[str, Role]:
    """Find the role of each parameter, by its name in `module.named_parameters()`.

    The outermost module that declares a parameter decides, because it knows what the parameter is
    for: a linear layer declares its weight a matrix, and the network that uses the layer as its
    output head declares it the head. Without a declaration the weight of an `nn.Linear` is a
    matrix, that of an `nn.Embedding` an embedding, and what has fewer than two axes a vector.

    Raises:
        UserError: A parameter with two or more axes is declared by no module.
    """
    from torch import nn

    modules = dict(module.named_modules())
    roles: dict[str, Role] = {}
    for name, parameter in module.named_parameters():
        owner_name, _, own_name = name.rpartition(".")
        owner = modules[owner_name]
        declared = _declared(modules, name)
        if declared is not None:
            roles[name] = declared
        elif parameter.ndim < 2:
            roles[name] = "vector"
        elif own_name == "weight" and isinstance(owner, nn.Linear):
            roles[name] = "matrix"
        elif own_name == "weight" and isinstance(owner, nn.Embedding):
            roles[name] = "embedding"
        else:
            raise UserError(
                f"the parameter {name!r} of shape {tuple(parameter.shape)} has no role, without"
                f" which no optimizer knows how to update it: declare it in the class"
                f" {type(owner).__name__}, as in"
                f' `roles: ClassVar[dict[str, Role]] = {{"{own_name}": "matrix"}}`; roles are'
                f" {', '.join(ROLES)}"
            )
    return roles


def _declared(modules: Mapping[str, nn.Module], name: str) -> Role | None:
    """Return what the outermost module on the way to a parameter declares for it, if any does."""
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = modules[".".join(parts[:depth])]
        if not isinstance(owner, DeclaresRoles):
            continue
        for end in range(len(parts), depth, -1):  # A parameter's own name goes before a child's.
            role = owner.roles.get(".".join(parts[depth:end]))
            if role is not None:
                return role
    return None
