"""Transferred groups: an optimizer's groups, divided by what a transfer makes of their rates.

A recipe makes one group for each role. Under a transfer the parameters of a role may have several
rates; those that have the same stay one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError
from lit_pretrain.optim.optimizer import OptimizerRecipe
from lit_pretrain.transfer import ParameterScale, StepFactors

if TYPE_CHECKING:
    import torch
    from torch import nn


def check_rules(recipe: OptimizerRecipe) -> None:
    """Refuse a recipe that does not say how its rates follow from the size of a network.

    Raises:
        UserError: It says nothing of matrices.
    """
    if recipe.transferred_rate("matrix", ParameterScale(), (1, 1)) is None:
        raise _no_rules(recipe.name)


def _no_rules(name: str) -> UserError:
    return UserError(
        f"model.transfer has rules for AdamW and MuonAdamW, and none for model.optimizer={name}:"
        " take one of them, or remove model.transfer"
    )


def transfer_groups_(
    optimizer: torch.optim.Optimizer,
    recipe: OptimizerRecipe,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, ParameterScale],
    step: StepFactors,
) -> None:
    """Divide the groups of a new optimizer by their parameters' scales, and set their rates.

    Args:
        optimizer: It has made no step yet.
        recipe: What it was built from.
        named_parameters: Names and parameters of the network.
        scales: What a transfer changes in each parameter, by its name.
        step: What the batch and the length of the run change.

    Raises:
        UserError: The recipe does not say how it updates a role.
    """
    names = {id(parameter): name for name, parameter in named_parameters}
    divided: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        role = group["role"]
        parts: dict[tuple[float, float], dict[str, Any]] = {}
        kinds: dict[float, set[str]] = {}
        for parameter in group["params"]:
            scale = scales[names[id(parameter)]]
            rate = recipe.transferred_rate(role, scale, tuple(parameter.shape))
            if rate is None:
                raise _no_rules(type(optimizer).__name__)
            eps = scale.eps if "eps" in group else 1.0
            if (rate, eps) not in parts:
                parts[rate, eps] = _part(group, rate, eps, step)
            parts[rate, eps]["params"].append(parameter)
            kinds.setdefault(parts[rate, eps]["lr"], set()).add(scale.kind)
        for part in parts.values():
            # min: the usual kind, which has no name, comes before all others.
            kind = min(kinds[part["lr"]]) if len(kinds) > 1 else ""
            part["name"] = f"{role}_{kind}" if kind else role
        divided += parts.values()
    optimizer.param_groups[:] = divided


def _part(group: Mapping[str, Any], rate: float, eps: float, step: StepFactors) -> dict[str, Any]:
    """Copy a group without its parameters, for those with another rate and eps."""
    part = {**group, "params": []}
    rate *= step.rate
    part["lr"] = part["initial_lr"] = group["lr"] * rate
    # Decay is multiplied by the rate, so that it is divided here for a step to take as much.
    if "weight_decay" in group:
        part["weight_decay"] = group["weight_decay"] * (step.decay / rate)
    if "eps" in group:
        part["eps"] = group["eps"] * eps
    if "betas" in group:
        beta1, beta2 = group["betas"]
        part["betas"] = (beta1, beta2**step.beta2_power)
    return part
