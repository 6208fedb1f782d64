"""Parameter groups: one per role, so that each kind of weight gets the learning rate and decay that suit it."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from torch import nn

from lit_pretrain.errors import UserError

Role = Literal["matrix", "embedding", "head", "value_embedding", "vector", "scalar"]
"""matrix: a 2-D weight inside a block; vector: norms, biases; scalar: single gains; the rest are what they are called."""

ROLES: tuple[Role, ...] = get_args(Role)


def split_by_role(
    named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, str]
) -> dict[Role, list[tuple[str, nn.Parameter]]]:
    """Sort the trainable parameters by role, in the order of `ROLES`; roles without a parameter are left out.

    Args:
        named_parameters: Names and parameters of the network. Frozen parameters are dropped; a tensor that appears under two
            names (tied weights) counts once, under the first.
        roles: Role of each parameter, by name.

    Raises:
        UserError: A parameter has no role, or an unknown one, or a matrix is not 2-D.
    """
    found: dict[Role, list[tuple[str, nn.Parameter]]] = {role: [] for role in ROLES}
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        role = roles.get(name)
        if role is None:
            raise UserError(f"optimizer: parameter {name!r} has no role; the network must name one of {', '.join(ROLES)}.")
        if role not in found:
            raise UserError(f"optimizer: parameter {name!r} has the unknown role {role!r}; use one of {', '.join(ROLES)}.")
        found[role].append((name, parameter))
    if not seen:
        raise UserError("optimizer: the network has no trainable parameter; check what is frozen.")
    return {role: parameters for role, parameters in found.items() if parameters}
