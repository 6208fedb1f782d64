"""Checks that configs with a `kind` share."""

import dataclasses
from typing import Any

from lit_pretrain.errors import UserError


def check_kind(where: str, config: Any, allowed: tuple[str, ...], needed: tuple[str, ...], *, common: tuple[str, ...]) -> None:
    """Refuses a field that is set but belongs to another kind, and one that is missing."""
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        default = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        if spec.name not in (*allowed, *common) and value != default:
            raise UserError(
                f"{where}.{spec.name}={value!r} has no meaning for kind {config.kind}, which takes {', '.join((*allowed, *common))}"
            )
        if spec.name in needed and value is None:
            raise UserError(f"{where} is of kind {config.kind} and needs `{spec.name}`")
