"""Chain: the filters of a config, loaded and applied one after the other."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_pretrain.class_path import import_class_path
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import Verdict, View
from lit_pretrain.prepare.filters.filter_spec import (
    FILTERS,
    FilterEntry,
    FilterSpec,
    expand_filters,
)

FilterFunction = Callable[[Document, View], Any]
"""A loaded filter; a user's own may return a Verdict, a bool, or (bool, reason)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the filters of a chain decided about one document."""

    document: Document
    """The document as the last filter saw it, with the edits and fields of those that it passed.
    A removed one is kept in this form as a reject.
    """
    removed_by: str
    """Name of the filter that removed it; empty if it is kept."""
    reason: str
    """Why it was removed; empty if it is kept."""
    passed: tuple[int, ...]
    """UTF-8 bytes of its text after each filter that let it through, in the order of
    `Chain.names`.
    """
    texts: tuple[str, ...]
    """Its text after each of these filters."""
    changed: tuple[tuple[str, str], ...]
    """(name of filter, what it did) of every filter that edited the text."""

    @property
    def kept(self) -> bool:
        """Whether every filter let the document through."""
        return not self.removed_by


class Chain:
    """Put documents through the filters of a config, up to the first that removes them.

    A chain holds no count and no document, so that one chain serves any number of sources.

    Args:
        entries: Names of presets, and specs, as in the config.

    Raises:
        UserError: A filter cannot be found or built; see `load_filter`.
    """

    def __init__(self, entries: Sequence[FilterEntry]) -> None:
        specs = expand_filters(entries)
        self.names = _unique_names([spec.class_path.rpartition(".")[2] for spec in specs])
        """Names of the filters in their order: the class or function, with a number if it occurs
        again.
        """
        self._filters = list(zip(self.names, map(load_filter, specs), strict=True))

    def __call__(self, document: Document) -> Outcome:
        """Put one document through the filters.

        Raises:
            UserError: A filter returned something that is not a verdict.
        """
        view = View(document.text)
        size = len(document.utf8)
        passed: list[int] = []
        texts: list[str] = []
        changed: list[tuple[str, str]] = []
        for name, judge in self._filters:
            verdict = verdict_of(judge(document, view), name)
            if verdict.fields:
                document = dataclasses.replace(
                    document, fields={**document.fields, **verdict.fields}
                )
            if not verdict.keep:
                return Outcome(
                    document, name, verdict.reason, tuple(passed), tuple(texts), tuple(changed)
                )
            if verdict.text is not None and verdict.text != document.text:
                if not verdict.text:  # A document is never empty.
                    return Outcome(
                        document, name, "nothing_left", tuple(passed), tuple(texts), tuple(changed)
                    )
                document = dataclasses.replace(document, text=verdict.text)
                view = View(document.text)
                size = len(document.utf8)
                changed.append((name, verdict.reason or "edited"))
            passed.append(size)
            texts.append(document.text)
        return Outcome(document, "", "", tuple(passed), tuple(texts), tuple(changed))


def _unique_names(found: list[str]) -> list[str]:
    """Append a number to names that occur again: a second Language becomes Language_2."""
    names: list[str] = []
    for place, name in enumerate(found):
        before = found[:place].count(name)
        names.append(f"{name}_{before + 1}" if before else name)
    return names


def load_filter(spec: FilterSpec) -> FilterFunction:
    """Build one filter.

    Raises:
        UserError: The class does not exist or cannot be imported, or an argument is unknown,
            missing or of the wrong type.
    """
    target = _find(spec.class_path)
    if inspect.isclass(target):
        _check_names(spec, inspect.signature(target), skip=0)
        ours = spec.class_path in FILTERS
        built = target(**(_typed_arguments(spec, target) if ours else spec.init_args))
        if not callable(built):
            raise UserError(
                f"filters: objects of {spec.class_path} cannot be called; give the class a"
                " __call__(self, document, view)"
            )
        return built
    if not callable(target):
        raise UserError(
            f"filters: {spec.class_path} is neither a class nor a function but a"
            f" {type(target).__name__}"
        )
    _check_names(spec, inspect.signature(target), skip=2)
    return functools.partial(target, **spec.init_args)


def verdict_of(value: Any, name: str) -> Verdict:
    """Turn what a filter returned into a Verdict.

    Args:
        value: A Verdict, a bool, or (bool, reason).
        name: Name of the filter, for messages.

    Raises:
        UserError: It is something else; most often None, from a function without a return.
    """
    if type(value) is Verdict:
        return value
    keep, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if not isinstance(keep, bool | np.bool_) or not isinstance(reason, str):
        raise UserError(
            f"filter {name} returned {value!r}; it must return a Verdict, True, False, or (True or"
            " False, reason)"
        )
    return Verdict(bool(keep), reason if reason or keep else "removed")


def _find(path: str) -> Any:
    """Find the class or function behind a name."""
    if path not in FILTERS and "." not in path:
        raise UserError(
            f"filters: unknown class_path {path!r}.{did_you_mean(path, FILTERS)} Ours:"
            f" {', '.join(FILTERS)}; others need their dotted path."
        )
    return import_class_path(FILTERS.get(path, path), "filters: class_path")


def _check_names(spec: FilterSpec, signature: inspect.Signature, *, skip: int) -> None:
    """Refuse arguments that the callable does not take, and ask for those that it needs.

    `skip` is the number of leading parameters that are no arguments: document and view of a
    function.
    """
    parameters = list(signature.parameters.values())[skip:]
    named = {
        each.name: each
        for each in parameters
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
    }
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for name in spec.init_args:
            if name not in named:
                takes = f"it takes {', '.join(named)}" if named else "it takes none"
                raise UserError(
                    f"filters: {spec.class_path} has no argument"
                    f" {name!r}.{did_you_mean(name, named)} ({takes})"
                )
    missing = [
        name
        for name, each in named.items()
        if each.default is each.empty and name not in spec.init_args
    ]
    if missing:
        raise UserError(f"filters: {spec.class_path} needs init_args: {', '.join(missing)}")


def _typed_arguments(spec: FilterSpec, target: Any) -> dict[str, Any]:
    """Check the arguments of one of our classes against its annotations."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target)
    try:
        values: dict[str, Any] = parser.parse_object(dict(spec.init_args)).as_dict()
    except ArgumentError as error:
        raise UserError(f"filters: {spec.class_path}: {error.message}") from None
    return values
