"""Class paths: the dotted names in a config that stand for a class or function of the user's."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lit_pretrain.errors import UserError, cause_of, did_you_mean


def import_class_path(path: str, where: str) -> Any:
    """Import what a dotted path names, from an installed package or the current folder.

    Args:
        path: `package.module.Name`.
        where: The setting that holds the path, for messages, such as "sources.web.kind".

    Raises:
        UserError: The path has no dot, there is no such module or name in it, or the module cannot
            be imported.
    """
    setting = f"{where}={path!r}"
    module_name, _, name = path.rpartition(".")
    if not module_name or path.startswith("."):
        raise UserError(f"{setting} is no dotted path, such as my_package.my_module.MyClass")
    search_current_folder()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{module_name}.".startswith(f"{absent}."):
            parent = absent.rpartition(".")[0]
            folders = getattr(sys.modules.get(parent), "__path__", [])
            beside = [f"{parent}.{each.name}" for each in pkgutil.iter_modules(folders)]
            raise UserError(
                f"{setting}: there is no module {absent!r}.{did_you_mean(absent, beside)} Correct"
                " it, or put its folder on PYTHONPATH (the current folder is searched too)."
            ) from None
        raise UserError(
            f"{setting}: the module {module_name} cannot be imported: {cause_of(error)}"
        ) from error
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


def check_call(
    where: str, function: Callable[..., Any], *arguments: str, keywords: Sequence[str] = ()
) -> None:
    """Refuse a function that cannot be called with these arguments, in their order.

    Args:
        where: Names the function, for the message.
        function: Of the user's.
        arguments: Names of the arguments, for the message.
        keywords: Further arguments, which are given by name.

    Raises:
        UserError: It takes fewer, or needs more.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        raise UserError(
            f"{where} is called with ({', '.join([*arguments, *keywords])}) and takes"
            f" ({', '.join(map(str, signature.parameters.values()))}): {error}."
        ) from None
