"""Checks that configs with a `kind` share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from lit_pretrain.errors import UserError


def refuse_null(config: Any, where: str = "") -> None:
    """Refuses a field that is null and may not be, in a config and those within it: the parser lets an empty entry of a file through."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if value is None and type(None) not in get_args(hint):
            raise UserError(f"{where}{name} is empty (null): give it a value, or leave it out for its default")
        inner = value if isinstance(value, Mapping) else {"": value}
        for key, each in inner.items():
            if dataclasses.is_dataclass(each):
                refuse_null(each, f"{where}{name}.{key}." if key else f"{where}{name}.")


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
