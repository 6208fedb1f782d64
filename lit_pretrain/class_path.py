"""Class paths: the dotted names in a config that stand for a class or function of the user's."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from lit_pretrain.errors import UserError, did_you_mean


def import_class_path(path: str, where: str) -> Any:
    """Import what a dotted path names, from an installed package or the current folder.

    Args:
        path: `package.module.Name`.
        where: The setting that holds the path, for messages, such as "sources.web.kind".

    Raises:
        UserError: The path has no dot, or there is no such module or name in it.
    """
    setting = f"{where}={path!r}"
    module_name, _, name = path.rpartition(".")
    if not module_name or path.startswith("."):
        raise UserError(f"{setting} is no dotted path, such as my_package.my_module.MyClass")
    search_current_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module exists and misses another one; its own error says so best.
        raise UserError(
            f"{setting}: there is no module {error.name!r}. Correct it, or put its folder on"
            " PYTHONPATH (the current folder is searched too)."
        ) from None
    if not hasattr(module, name):
        public = [known for known in dir(module) if not known.startswith("_")]
        hint = did_you_mean(name, public) or f" It has {', '.join(public[:10]) or 'no names'}."
        raise UserError(f"{setting}: the module {module_name} has no {name!r}.{hint}")
    return getattr(module, name)


def search_current_folder() -> None:
    """Make modules of the current folder importable.

    `python -m lit_pretrain` finds them anyway; the installed command `lit_pretrain` would not. The
    folder comes last, so that it hides no installed package.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
