"""Parameter groups: weights sorted by role, so that each kind gets the learning rate and decay
that suit it.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from torch import nn

from lit_pretrain.errors import UserError

Role = Literal["matrix", "embedding", "value_embedding", "head", "vector", "scalar", "adapter"]
"""matrix: a weight that multiplies inside a block, (..., out, in); embedding, value_embedding:
tables that are looked up; head: the output projection; vector: norms and biases; scalar: single
gains; adapter: a factor of a low-rank update.
"""

ROLES: tuple[Role, ...] = get_args(Role)


def split_by_role(
    named_parameters: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, str]
) -> dict[Role, list[nn.Parameter]]:
    """Sort the trainable parameters by role, in the order of `ROLES`; roles without a parameter are
    left out.

    Args:
        named_parameters: Names and parameters of the network. Frozen parameters are dropped; one
            that appears under two names (tied weights) counts once, under the first.
        roles: Role of each parameter, by name.

    Raises:
        UserError: A parameter has no role or an unknown one, a matrix has fewer than two
            dimensions, or nothing is trainable.
    """
    known = ", ".join(ROLES)
    found: dict[Role, list[nn.Parameter]] = {role: [] for role in ROLES}
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
        found[role].append(parameter)
    if not seen:
        raise UserError("optimizer: the network has no trainable parameter; check what is frozen.")
    return {role: parameters for role, parameters in found.items() if parameters}


def decays(role: Role, *, embeddings: bool) -> bool:
    """Whether weight decay applies: to matrices, the head and adapters, to tables as asked, never
    to vectors and scalars.

    Decay pulls towards zero, which for a gain or a bias is not a simpler model but another
    function.
    """
    return role in ("matrix", "head", "adapter") or (
        embeddings and role in ("embedding", "value_embedding")
    )
