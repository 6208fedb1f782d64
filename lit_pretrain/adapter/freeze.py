"""Freeze: parameters that training leaves as they are, by name."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from lit_pretrain.errors import UserError, nearest


def matching(
    patterns: Sequence[str], names: Iterable[str], *, setting: str, what: str
) -> list[str]:
    """Return the names in which at least one pattern is found, in their own order.

    Args:
        patterns: Regular expressions; each is searched for anywhere in a name.
        names: Dotted names.
        setting: Where the patterns come from, for the message.
        what: What is named, for the message: "matrix", "parameter".

    Raises:
        UserError: A pattern is not a regular expression, or is found in no name; near names are
            given.
    """
    all_names, found = list(names), set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{setting}: {pattern!r} is not a regular expression ({error})"
            ) from None
        hits = [name for name in all_names if regex.search(name)]
        if not hits:
            near = _near(pattern, all_names)
            raise UserError(
                f"{setting}: {pattern!r} is found in the name of no {what}; there are"
                f" {', '.join(near)}"
            )
        found.update(hits)
    return [name for name in all_names if name in found]


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the kinds of names nearest to a pattern, else the first few; no layer numbers."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    plain = re.sub(r"\\(.)", r"\1", pattern)
    # A pattern may name the whole, the end or one part of a name.
    parts: dict[str, list[str]] = {}
    for kind in kinds:
        pieces = kind.split(".")
        for part in {kind, *pieces, *(".".join(pieces[i:]) for i in range(1, len(pieces)))}:
            parts.setdefault(part, []).append(kind)
    close = nearest(plain, parts, limit=3)
    return list(dict.fromkeys(kind for part in close for kind in parts[part]))[:6] or kinds[:8]


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
        raise UserError(
            f"model.freeze={list(patterns)} freezes every parameter: nothing is left to train"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen
