"""Load: from the names in a config to filters that can be called."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.filters.nearest import did_you_mean
from lit_pretrain.prepare.filters.preset import PRESETS
from lit_pretrain.prepare.filters.spec import FilterEntry, FilterSpec
from lit_pretrain.prepare.filters.verdict import Verdict
from lit_pretrain.prepare.filters.view import View

OURS = {
    "C4": "c4",
    "FineWeb": "fineweb",
    "GopherQuality": "gopher_quality",
    "GopherRepetition": "gopher_repetition",
    "Language": "language",
    "Url": "url",
}
"""Our filters by class name -> their module."""

Callee = Callable[[Document, View], Any]
"""A loaded filter; one of somebody else may return a Verdict, a bool, or (bool, reason)."""


def expand(entries: Sequence[FilterEntry]) -> list[FilterSpec]:
    """The specs of a config's list, presets replaced by what they stand for.

    Raises:
        UserError: A name is no preset and no filter.
    """
    specs: list[FilterSpec] = []
    for entry in entries:
        if isinstance(entry, FilterSpec):
            specs.append(entry)
        elif entry in PRESETS:
            specs += PRESETS[entry]
        elif entry in OURS or "." in entry:
            specs.append(FilterSpec(class_path=entry))
        else:
            raise UserError(
                f"filters: unknown {entry!r}.{did_you_mean(entry, (*PRESETS, *OURS))} Presets: {', '.join(PRESETS)}; "
                f"filters: {', '.join(OURS)}; or the dotted path of your own."
            )
    return specs


def load(spec: FilterSpec) -> Callee:
    """Builds one filter.

    Raises:
        UserError: The class does not exist or cannot be imported, or an argument is unknown, missing or of the wrong type.
    """
    target = _find(spec.class_path)
    if inspect.isclass(target):
        _check_names(spec, inspect.signature(target), skip=0)
        made = target(**_typed(spec, target)) if spec.class_path in OURS else target(**spec.init_args)
        if not callable(made):
            raise UserError(f"filters: objects of {spec.class_path} cannot be called; give the class a __call__(self, document, view)")
        return made
    if not callable(target):
        raise UserError(f"filters: {spec.class_path} is neither a class nor a function but a {type(target).__name__}")
    _check_names(spec, inspect.signature(target), skip=2)
    return functools.partial(target, **spec.init_args)


def verdict_of(value: Any, name: str) -> Verdict:
    """What a filter returned, as a Verdict.

    Args:
        value: A Verdict, a bool, or (bool, reason).
        name: Of the filter, for messages.

    Raises:
        UserError: It is something else. (None, the value of a function without return, is the common case.)
    """
    if type(value) is Verdict:
        return value
    keep, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if type(keep).__name__ not in ("bool", "bool_") or not isinstance(reason, str):  # numpy's bool is no bool
        raise UserError(f"filter {name} returned {value!r}; it must return a Verdict, True, False, or (True or False, reason)")
    return Verdict(bool(keep), reason if reason or keep else "removed")


def _find(path: str) -> Any:
    """The class or function behind a name."""
    if path in OURS:
        return getattr(importlib.import_module(f"lit_pretrain.prepare.filters.{OURS[path]}"), path)
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(
            f"filters: unknown class_path {path!r}.{did_you_mean(path, OURS)} Ours: {', '.join(OURS)}; others need their dotted path."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, and misses another one: its own error says so best
        raise UserError(
            f"filters: class_path {path}: there is no module {error.name!r}. Correct it, or put its directory on PYTHONPATH."
        ) from None
    except ValueError as error:
        raise UserError(f"filters: class_path {path!r} is no dotted path ({error})") from None
    if not hasattr(module, name):
        public = [known for known in dir(module) if not known.startswith("_")]
        raise UserError(f"filters: class_path {path}: module {module_name} has no {name!r}.{did_you_mean(name, public)}")
    return getattr(module, name)


def _check_names(spec: FilterSpec, signature: inspect.Signature, *, skip: int) -> None:
    """Refuses arguments that the callable does not take, and asks for those that it needs. `skip`: document and view of a function."""
    parameters = list(signature.parameters.values())[skip:]
    named = {each.name: each for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for name in spec.init_args:
            if name not in named:
                takes = f"it takes {', '.join(named)}" if named else "it takes none"
                raise UserError(f"filters: {spec.class_path} has no argument {name!r}.{did_you_mean(name, named)} ({takes})")
    missing = [name for name, each in named.items() if each.default is each.empty and name not in spec.init_args]
    if missing:
        raise UserError(f"filters: {spec.class_path} needs init_args: {', '.join(missing)}")


def _typed(spec: FilterSpec, target: Any) -> dict[str, Any]:
    """The arguments of one of our classes, checked against its annotations."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target)
    try:
        values: dict[str, Any] = parser.parse_object(dict(spec.init_args)).as_dict()
    except ArgumentError as error:
        raise UserError(f"filters: {spec.class_path}: {error.message}") from None
    return values
