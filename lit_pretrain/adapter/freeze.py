"""Freeze: parameters that training leaves as they are, by name."""

from collections.abc import Sequence

from torch import nn

from lit_pretrain.errors import UserError

from .match import matching


def freeze_(net: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze the parameters in whose names a pattern is found, and return those names.

    Args:
        net: The network; changed in place.
        patterns: Regular expressions over names such as `blocks.0.attention.q_proj.weight`.

    Raises:
        UserError: A pattern is found in no name, or nothing would be left to train.
    """
    parameters = dict(net.named_parameters())
    frozen = matching(patterns, parameters, setting="model.freeze", what="parameter")
    if len(frozen) == len(parameters):
        raise UserError(f"model.freeze={list(patterns)} freezes every parameter: nothing is left to train")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen
