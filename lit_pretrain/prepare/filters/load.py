"""Load: from the names in a config to filters that can be called."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from jsonargparse.typing import register_type

from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.prepare.class_path import import_class_path
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import Verdict, View

# FilterSpec: a filter in a config, as class and arguments.


@dataclass(kw_only=True)
class FilterSpec:
    """One filter: `{class_path: Language, init_args: {keep: [en]}}`."""

    class_path: str
    """Name of one of ours (C4, FineWeb, GopherQuality, GopherRepetition, Language, Url), or the
    dotted path of any class whose objects, or of any function that, can be called with (document,
    view) and returns a Verdict, a bool, or (bool, reason).
    """
    init_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments by name."""


FilterEntry = Union[str, FilterSpec]
"""What stands in a list of filters: the name of a preset (gopher, c4, fineweb), or a FilterSpec."""


def _read(value: Any) -> FilterSpec:
    """A spec from its mapping in a config."""
    if isinstance(value, FilterSpec):
        return value
    if not isinstance(value, dict):
        raise UserError(
            "a filter is the name of a preset, or a mapping with class_path and init_args; found"
            f" {value!r}"
        )
    known = [each.name for each in dataclasses.fields(FilterSpec)]
    for name in value:
        if name not in known:
            raise UserError(
                "a filter takes class_path and init_args; found"
                f" {name!r}.{did_you_mean(str(name), known)}"
            )
    if not isinstance(value.get("class_path"), str):
        raise UserError(f"a filter needs class_path, the name of its class; found {value!r}")
    if not isinstance(value.get("init_args", {}), dict):
        raise UserError(
            f"init_args of {value['class_path']} must map names to values; found"
            f" {value['init_args']!r}"
        )
    return FilterSpec(**value)


# Left to itself jsonargparse takes {class_path, init_args} for a class to build, and refuses names
# without a dot.
register_type(
    FilterSpec, serializer=dataclasses.asdict, deserializer=_read, fail_already_registered=False
)


# Presets: the rules of published datasets by name, each number with its rule.
#
# FineWeb's recipe puts these sets one after the other; its config is
#
#     filters:
# - {class_path: Url, init_args: {datatrove_lists: true}}       # section 3.3, base filtering; the
# same lists
# - {class_path: Language, init_args: {keep: [en]}}             # there with fastText, and a score
# of at least 0.65
#       - gopher                                                      # there, too
# - {class_path: C4, init_args: {terminal_punctuation: false}}  # section 3.5: all of C4's rules but
# this one
#       - fineweb                                                     # section 3.6


FILTER_PRESETS: dict[str, tuple[FilterSpec, ...]] = {
    # Rae et al. (2021), Scaling Language Models, arXiv:2112.11446, section A.1.1
    "gopher": (
        FilterSpec(
            class_path="GopherRepetition",
            init_args={
                "max_duplicate_paragraphs": 0.30,  # table A1: duplicate paragraph fraction
                "max_duplicate_paragraph_characters": (
                    0.20
                ),  # table A1: duplicate paragraph character fraction
                "max_duplicate_lines": 0.30,  # table A1: duplicate line fraction
                "max_duplicate_line_characters": (
                    0.20
                ),  # table A1: duplicate line character fraction
                "top_ngrams": {
                    2: 0.20,
                    3: 0.18,
                    4: 0.16,
                },  # table A1: top n-gram character fraction
                "duplicate_ngrams": {
                    5: 0.15,
                    6: 0.14,
                    7: 0.13,
                    8: 0.12,
                    9: 0.11,
                    10: 0.10,
                },  # table A1: duplicate n-gram ...
            },
        ),
        FilterSpec(
            class_path="GopherQuality",
            init_args={
                "min_words": 50,  # "between 50 and 100,000 words"
                "max_words": 100_000,
                "min_mean_word_length": 3,  # "mean word length" from 3 to 10 characters
                "max_mean_word_length": 10,
                "max_symbols_per_word": 0.1,  # "symbol-to-word ratio" of hash signs and of ellipses
                "max_bullet_lines": 0.9,  # lines starting with a bullet point
                "max_ellipsis_lines": 0.3,  # lines ending with an ellipsis
                "min_alphabetic_words": 0.8,  # words with at least one alphabetic character
                "min_stop_words": 2,  # of the, be, to, of, and, that, have, with
            },
        ),
    ),
    # Raffel et al. (2020), Exploring the Limits of Transfer Learning, JMLR 21 (20-074), section 2.2
    "c4": (
        FilterSpec(
            class_path="C4",
            init_args={
                "terminal_punctuation": True,  # lines that end in a terminal punctuation mark
                "min_sentences": (
                    5
                ),  # datatrove, with which FineWeb was made; the authors' code has 3
                "min_words_per_line": 3,  # datatrove; the authors' code has 5
                "max_word_length": 1000,  # the code alone
                "curly_brackets": True,  # pages with a curly bracket
                "javascript": True,  # lines with the word Javascript
                "policy": True,  # boilerplate policy notices
                "lorem_ipsum": True,  # pages with "lorem ipsum"
                "citations": True,  # Wikipedia's citation marks
            },
        ),
    ),
    # Penedo et al. (2024), The FineWeb Datasets, arXiv:2406.17557, section 3.6
    "fineweb": (
        FilterSpec(
            class_path="FineWeb",
            init_args={
                "min_sentence_end_lines": 0.12,  # fraction of lines ending with punctuation
                "max_short_lines": 0.67,  # fraction of lines shorter than 30 characters
                "short_line": 30,
                "max_duplicate_line_characters": (
                    0.01
                ),  # fraction of characters in duplicated lines: their code; the paper says 0.1
                "max_line_breaks_per_word": 0.3,  # their code alone
            },
        ),
    ),
}

FILTERS = {
    "C4": "c4",
    "FineWeb": "fineweb",
    "GopherQuality": "gopher_quality",
    "GopherRepetition": "gopher_repetition",
    "Language": "language",
    "Url": "url",
}
"""Our filters by class name -> their module."""

FilterFunction = Callable[[Document, View], Any]
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
        elif entry in FILTER_PRESETS:
            specs += FILTER_PRESETS[entry]
        elif entry in FILTERS or "." in entry:
            specs.append(FilterSpec(class_path=entry))
        else:
            raise UserError(
                f"filters: unknown {entry!r}.{did_you_mean(entry, (*FILTER_PRESETS, *FILTERS))}"
                f" Presets: {', '.join(FILTER_PRESETS)}; filters: {', '.join(FILTERS)}; or the"
                " dotted path of your own."
            )
    return specs


def load_filters(spec: FilterSpec) -> FilterFunction:
    """Builds one filter.

    Raises:
        UserError: The class does not exist or cannot be imported, or an argument is unknown,
            missing or of the wrong type.
    """
    target = _find(spec.class_path)
    if inspect.isclass(target):
        _check_names(spec, inspect.signature(target), skip=0)
        made = (
            target(**_typed(spec, target))
            if spec.class_path in FILTERS
            else target(**spec.init_args)
        )
        if not callable(made):
            raise UserError(
                f"filters: objects of {spec.class_path} cannot be called; give the class a"
                " __call__(self, document, view)"
            )
        return made
    if not callable(target):
        raise UserError(
            f"filters: {spec.class_path} is neither a class nor a function but a"
            f" {type(target).__name__}"
        )
    _check_names(spec, inspect.signature(target), skip=2)
    return functools.partial(target, **spec.init_args)


def verdict_of(value: Any, name: str) -> Verdict:
    """What a filter returned, as a Verdict.

    Args:
        value: A Verdict, a bool, or (bool, reason).
        name: Of the filter, for messages.

    Raises:
        UserError: It is something else. (None, the value of a function without return, is the
            common case.)
    """
    if type(value) is Verdict:
        return value
    keep, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if type(keep).__name__ not in ("bool", "bool_") or not isinstance(
        reason, str
    ):  # numpy's bool is no bool
        raise UserError(
            f"filter {name} returned {value!r}; it must return a Verdict, True, False, or (True or"
            " False, reason)"
        )
    return Verdict(bool(keep), reason if reason or keep else "removed")


def _find(path: str) -> Any:
    """Find the class or function behind a name."""
    if path in FILTERS:
        path = f"lit_pretrain.prepare.filters.{FILTERS[path]}.{path}"
    elif "." not in path:
        raise UserError(
            f"filters: unknown class_path {path!r}.{did_you_mean(path, FILTERS)} Ours:"
            f" {', '.join(FILTERS)}; others need their dotted path."
        )
    return import_class_path(path, "filters: class_path")


def _check_names(spec: FilterSpec, signature: inspect.Signature, *, skip: int) -> None:
    """Refuses arguments that the callable does not take, and asks for those that it needs.
    `skip`: document and view of a function.
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


# Chain: filters one after the other, up to the first that objects.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one document."""

    document: Document
    """As the last filter saw it: with the edits and fields of those that it passed. Of a
    removed one, this is what to keep as reject.
    """
    removed_by: str
    """Name of the filter that removed it; empty: it is kept."""
    reason: str
    """Why it was removed; empty: it is kept."""
    passed: tuple[int, ...]
    """UTF-8 bytes of its text after each filter that let it through, in the order of
    `Chain.names`.
    """
    texts: tuple[str, ...]
    """Its text after each of these."""
    changed: tuple[tuple[str, str], ...]
    """(name of filter, what it did) of every filter that edited the text."""

    @property
    def kept(self) -> bool:
        """Whether every filter let it through."""
        return not self.removed_by


class Chain:
    """The filters of a config in their order. Holds no count and no document, so that one chain
    serves any number of sources.

    Args:
        entries: Names of presets and specs, as in the config.

    Raises:
        UserError: A filter cannot be found or built; see `load`.
    """

    def __init__(self, entries: Sequence[FilterEntry]) -> None:
        specs = expand(entries)
        self.names = _names([spec.class_path.rpartition(".")[2] for spec in specs])
        """Of the filters in their order: the class or function, with a number where it occurs
        again.
        """
        self._filters = list(zip(self.names, map(load_filters, specs), strict=True))

    def __call__(self, document: Document) -> Outcome:
        """Puts one document through the filters.

        Raises:
            UserError: A filter returned something that is no verdict.
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
                if not verdict.text:  # a document is never empty
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


def _names(found: list[str]) -> list[str]:
    """Each name once: a second Language becomes Language_2."""
    names: list[str] = []
    for place, name in enumerate(found):
        before = found[:place].count(name)
        names.append(f"{name}_{before + 1}" if before else name)
    return names
