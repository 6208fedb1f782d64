"""Class paths: the names in a config that stand for a class or function, ours or the user's."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from lit_pretrain.errors import UserError, did_you_mean


def import_class_path(path: str, where: str) -> Any:
    """Import the class or function that a dotted path names.

    Args:
        path: `package.module.Name`.
        where: What in the config holds the path, for messages, e.g. "filters: class_path".

    Raises:
        UserError: The path has no dot, or there is no such module or name in it.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or path.startswith("."):
        raise UserError(f"{where} {path!r} is no dotted path, such as my_package.my_module.MyClass")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module exists and misses another one; its own error says so best.
        raise UserError(
            f"{where} {path}: there is no module {error.name!r}. Correct it, or put its"
            " directory on PYTHONPATH."
        ) from None
    if not hasattr(module, name):
        public = [known for known in dir(module) if not known.startswith("_")]
        raise UserError(
            f"{where} {path}: module {module_name} has no {name!r}.{did_you_mean(name, public)}"
        )
    return getattr(module, name)


def distributions_of(path: str) -> list[str]:
    """List the installed packages that a class path may come from; none for a user's own module."""
    return importlib.metadata.packages_distributions().get(path.partition(".")[0], [])
