"""Class paths: the dotted names in a config that stand for a class or function of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
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
    except Exception as error:  # a module of the user's may raise anything while it is imported
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


# ------------------------------------------------------------------ configs of others


_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_OURS = ("lit_pretrain.", "torch.optim.")
_FILES = ("json", "jsonl", "parquet", "csv", "txt", "md", "gz", "zst", "bz2", "yaml", "jinja")
"""Ends of the names of files, which a dotted path of a harmless module may look like: test.jsonl"""


def refuse_foreign_classes(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config of a run that names code which is neither ours nor torch's.

    Whoever reads such a config imports the code, and so runs it. Any text that could be imported
    counts, because options take classes by a text, too.

    Args:
        config: The config, or some of its sections.
        where: The run, for messages.

    Raises:
        UserError: Names the options and what they name.
    """
    found = [f"{name}={path!r}" for name, path in _dotted_paths(config, "") if not _is_ours(path)]
    if found:
        raise UserError(
            f"{where} names code that is not of lit_pretrain, and to read it would run that code:"
            f" {', '.join(found)}. If you trust it, give --trust"
        )


def _dotted_paths(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield everything in a config that somebody may import, with its dotted name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _dotted_paths(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _dotted_paths(item, f"{name}.{i}")
    elif (
        isinstance(value, str)
        and _DOTTED.fullmatch(value)
        and (name.rpartition(".")[2] == "class_path" or _can_be_imported(value))
    ):
        yield name, value


def _can_be_imported(path: str) -> bool:
    """Tell whether the first module of a path exists, without importing it."""
    first, second, *_ = path.split(".")
    if first in sys.stdlib_module_names and path.rpartition(".")[2] in _FILES:
        return False
    # The current folder may not be among those that are searched yet.
    folders = [first] if os.path.exists(first) else []
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module without specification, such as __main__
        return True
    if os.path.exists(f"{first}.py") or (spec is not None and spec.origin is not None):
        return True
    folders += [] if spec is None else list(spec.submodule_search_locations or [])
    # Of a folder without __init__.py only the modules in it can be imported.
    return any(
        (Path(folder) / second).is_dir() or (Path(folder) / f"{second}.py").is_file()
        for folder in folders
    )


def _is_ours(path: str) -> bool:
    """Tell whether a path names something that is defined in lit_pretrain or torch.optim."""
    if not path.startswith(_OURS):
        return False
    module, _, name = path.rpartition(".")
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return f"{getattr(named, '__module__', '')}.".startswith(_OURS)
