"""Differing options: what is not the same in the configs of several runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

NOT_COMPARED = frozenset({"name", "runs", "resume", "fork", "from", "config", "model.init_from"})
"""Options that say where a run lies and what it begins with, which the list shows by itself."""


def differing_options(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare resolved configs.

    Where the class of an option differs, its name is the difference, and the settings of one class
    are compared among the configs that have it.

    Args:
        configs: One resolved config a run.

    Returns:
        For each config its own values of the options in which any two differ, by dotted name,
        without the `init_args` of classes; an option that a config lacks is not among them.
    """
    found: list[dict[str, Any]] = [{} for _ in configs]
    _compare("", dict(enumerate(configs)), found)
    return found


def _compare(name: str, values: Mapping[int, Any], found: list[dict[str, Any]]) -> None:
    """Note where the values of one option differ.

    Args:
        name: The option.
        values: Index of the config -> its value; configs without the option are left out.
        found: Filled with the differences.
    """
    first = next(iter(values.values()), None)
    if name in NOT_COMPARED or all(_same(value, first) for value in values.values()):
        return
    groups: dict[str | None, dict[int, Mapping[str, Any]]] = {}
    leaves = False
    for i, value in values.items():
        if isinstance(value, Mapping):
            path = value.get("class_path")
            settings = value.get("init_args") or {} if path is not None else value
            groups.setdefault(path, {})[i] = settings
        else:
            leaves = True
            found[i][name] = value
    if leaves or len(groups) > 1:
        for path, members in groups.items():
            # Of settings without a class, those that differ say enough.
            alike = len({repr(settings) for settings in members.values()}) == 1
            for i in members if path is not None or alike else ():
                found[i][name] = values[i] if path is None else str(path).rpartition(".")[2]
    for members in groups.values():
        for key in dict.fromkeys(key for settings in members.values() for key in settings):
            given = {i: settings[key] for i, settings in members.items() if key in settings}
            inner = f"{name}.{key}" if name else str(key)
            if len(given) < len(members) and inner not in NOT_COMPARED:
                for i, value in given.items():
                    found[i][inner] = value
            else:
                _compare(inner, given, found)


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same; NaN is the same as itself, and 1 is not true."""
    return repr(one) == repr(other)


def shortened(values: Sequence[Any]) -> list[str]:
    """Write the values of one option for a table.

    A folder that all paths have in common becomes `…`.
    """
    texts = [_written(value) for value in values]
    paths = {text: text.split("/") for text in texts if "/" in text}
    if len(paths) > 1:
        levels = zip(*(parts[:-1] for parts in paths.values()), strict=False)
        common = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, levels)))
        if common:
            short = {text: "/".join(["…", *parts[common:]]) for text, parts in paths.items()}
            texts = [short.get(text, text) for text in texts]
    return [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in texts]


_LONGEST = 48


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        inside = (f"{k}: {_written(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_written, value)) + "]"
    return " ".join(str(value).split())
