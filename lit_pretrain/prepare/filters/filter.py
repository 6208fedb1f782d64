"""What a filter is, and the chain of filters that judges the documents of a source.

A new filter is a class with `__call__(document, view)` that returns a `Verdict`. A filter of ours
stands in a module beside this one and gets a line in `filter_spec.FILTERS`; any other is named in
the config by its class path, and may be a function, and return a bool or (bool, reason).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lit_pretrain.class_path import check_call, import_class_path
from lit_pretrain.errors import UserError, cause_of, did_you_mean
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter_spec import (
    FILTERS,
    FilterEntry,
    FilterSpec,
    expand_filters,
)
from lit_pretrain.words import count_scripts, has_segmenter, language_without_spaces, words

_NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Filter(Protocol):
    """Judge documents. The same document gets the same verdict in every process and order.

    A filter that scores documents may have an attribute `keep_share`: of the documents that all
    filters of their source kept, those with the best scores then stay, up to that share of their
    bytes (`stages/keep_best.py`).

    A filter of ours declares on its class what else the package must know: `counts_words = False`
    if it looks at no words, and `inputs`, from its arguments to what its verdicts depend on.
    """

    def __call__(self, document: Document, view: View) -> Verdict:
        """Judge one document.

        Args:
            document: The document as the filters before left it.
            view: Its text, split and counted; all filters of a chain share it.
        """
        ...


class FilterInputs(NamedTuple):
    """What the verdicts of a filter depend on beside its arguments; a dataset records its version.

    Files that an argument with the suffix `_files` names are recorded anyway.
    """

    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """Whether a document stays, and why."""

    keep: bool
    """False removes the document."""
    reason: str = ""
    """Of a removal, the rule that was broken, in lower case with underscores. Of an edited text,
    what was done to it.
    """
    text: str | None = None
    """The text after the filter; None if the filter leaves it as it is."""
    fields: Mapping[str, str] = _NO_FIELDS
    """What the filter found out about the document (its language); it replaces the document's own
    fields of the same name.
    """
    score: float | None = None
    """How good the filter finds the document, from 0 to 1; the funnel counts the scores."""


KEEP = Verdict(keep=True)
"""The verdict on a document that breaks no rule."""


def remove(reason: str) -> Verdict:
    """Return the verdict that removes a document."""
    return Verdict(keep=False, reason=reason)


class View:
    """One text, split and counted; each part is computed once, when a filter first needs it.

    Words are those of `lit_pretrain.words`: what stands between white space, and in Chinese,
    Japanese, Thai, Khmer, Lao and Burmese the words of a segmenter, where one is installed. A view
    is held for one document at a time: words and lines as strings, and a few integers for each
    word. For Gopher's filters 17 times the text was measured on 0.9 MB of code.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        # Not cached properties, for the lock of one costs more than all this does for ASCII.
        self._segmented = not text.isascii() and has_segmenter() and count_scripts(text) is not None
        self.language = language_without_spaces(text) if self._segmented else ""
        """zh, ja, th, km, lo or my, for text without spaces in which a segmenter finds words.

        It is empty for all other text.
        """

    @cached_property
    def words(self) -> list[str]:
        """The words; see above."""
        return words(self.text) if self._segmented else self.text.split()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Distinct words -> id, numbered from 0 in the order in which they first appear."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """Id of every word, [words]."""
        return np.fromiter(
            map(self.vocabulary.__getitem__, self.words), dtype=np.int64, count=len(self.words)
        )

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How often each word of the vocabulary occurs, [vocabulary]."""
        return np.bincount(self.ids, minlength=len(self.vocabulary))

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Characters of each word of the vocabulary, [vocabulary]."""
        return np.fromiter(map(len, self.vocabulary), dtype=np.int64, count=len(self.vocabulary))

    @cached_property
    def rows(self) -> list[str]:
        """What stands between line feeds, empty rows included."""
        return self.text.split("\n")

    @cached_property
    def lines(self) -> list[str]:
        """Lines as `str.splitlines` cuts them.

        It cuts at every line boundary of Unicode, and leaves no empty last line.
        """
        return self.text.splitlines()

    @cached_property
    def lowered(self) -> str:
        """The text in lower case."""
        return self.text.lower()


FilterFunction = Callable[[Document, View], Any]
"""A loaded filter; a user's own may return a Verdict, a bool, or (bool, reason)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the filters of a chain decided about one document."""

    document: Document
    """The document as the last filter saw it, with the edits and fields of the filters before.
    This is also what a reject shows.
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
    scores: tuple[tuple[str, float], ...] = ()
    """(name of filter, score) of every filter that scored the text."""

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
        UserError: A filter cannot be found or built (see `load_filter`), or the shares that filters
            keep are not one share between 0 and 1.
    """

    def __init__(self, entries: Sequence[FilterEntry]) -> None:
        specs = expand_filters(entries)
        self.names = _unique_names([spec.class_path.rpartition(".")[2] for spec in specs])
        """Names of the filters in their order: the class or function, with a number if it occurs
        again.
        """
        self._filters = list(zip(self.names, map(load_filter, specs), strict=True))
        shares = [
            (name, share)
            for name, judge in self._filters
            if (share := getattr(judge, "keep_share", None)) is not None
        ]
        if len(shares) > 1:
            raise UserError(
                f"filters: {' and '.join(name for name, _ in shares)} each keep a share of the"
                " text; only one may: give the others a threshold"
            )
        for name, share in shares:
            if not isinstance(share, int | float) or not 0 < share < 1:
                raise UserError(
                    f"filters: {name} has keep_share={share!r}; it must be a share of the text:"
                    " above 0 and below 1"
                )
        self.keep_best: tuple[str, float] | None = shares[0] if shares else None
        """Name of the filter whose best-scored documents stay, and their share of the bytes."""

    def __call__(self, document: Document) -> Outcome:
        """Put one document through the filters.

        Raises:
            UserError: A filter returned something that is not a verdict, or has a `keep_share`
                and kept a document without a score.
        """
        view = View(document.text)
        size = len(document.utf8)
        passed: list[int] = []
        texts: list[str] = []
        changed: list[tuple[str, str]] = []
        scores: list[tuple[str, float]] = []
        for name, judge in self._filters:
            verdict = verdict_of(judge(document, view), name)
            if verdict.score is not None:
                scores.append((name, verdict.score))
            elif verdict.keep and self.keep_best is not None and name == self.keep_best[0]:
                raise UserError(
                    f"filter {name} has keep_share={self.keep_best[1]} and gave a document no"
                    " score; its verdicts need one, Verdict(True, score=...), or nothing says which"
                    " documents are best"
                )
            if verdict.fields:
                document = dataclasses.replace(
                    document, fields={**document.fields, **verdict.fields}
                )
            if not verdict.keep:
                return Outcome(
                    document, name, verdict.reason, tuple(passed), tuple(texts), tuple(changed),
                    tuple(scores),
                )  # fmt: skip
            if verdict.text is not None and verdict.text != document.text:
                if not verdict.text:  # A document is never empty.
                    return Outcome(
                        document, name, "nothing_left", tuple(passed), tuple(texts),
                        tuple(changed), tuple(scores),
                    )  # fmt: skip
                document = dataclasses.replace(document, text=verdict.text)
                view = View(document.text)
                size = len(document.utf8)
                changed.append((name, verdict.reason or "edited"))
            passed.append(size)
            texts.append(document.text)
        return Outcome(document, "", "", tuple(passed), tuple(texts), tuple(changed), tuple(scores))


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
        try:
            built = target(**(_typed_arguments(spec, target) if ours else spec.init_args))
        except UserError:
            raise
        except Exception as error:  # a filter may be code of the user's; ours raise it again
            if ours:
                raise
            raise UserError(
                f"filters: {spec.class_path} could not be made of {spec.init_args}:"
                f" {cause_of(error)}"
            ) from error
        if not callable(built):
            raise UserError(
                f"filters: objects of {spec.class_path} cannot be called; give the class a"
                " __call__(self, document, view)"
            )
        check_call(f"filters: {spec.class_path}.__call__", built, "document", "view")
        return built
    if not callable(target):
        raise UserError(
            f"filters: {spec.class_path} is neither a class nor a function but a"
            f" {type(target).__name__}"
        )
    _check_names(spec, inspect.signature(target), skip=2)
    judge = functools.partial(target, **spec.init_args)
    check_call(f"filters: {spec.class_path}", judge, "document", "view")
    return judge


def verdict_of(value: Any, name: str) -> Verdict:
    """Turn what a filter returned into a Verdict.

    Args:
        value: A Verdict, a bool, or (bool, reason).
        name: Name of the filter, for messages.

    Raises:
        UserError: It is something else; most often None, from a function without a return.
    """
    if type(value) is Verdict:
        if value.score is not None and not 0 <= value.score <= 1:
            raise UserError(f"filter {name} gave the score {value.score}; it must be from 0 to 1")
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
    """Refuse arguments that the callable does not take, and name those that it needs.

    Args:
        spec: The filter in the config.
        signature: Signature of its class or function.
        skip: Leading parameters that are no arguments: document and view of a function.
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


def _typed_arguments(spec: FilterSpec, target: Any) -> Mapping[str, Any]:
    """Parse the arguments of one of our classes by its annotations."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target)
    try:
        values: Mapping[str, Any] = parser.parse_object(dict(spec.init_args)).as_dict()
    except ArgumentError as error:
        raise UserError(f"filters: {spec.class_path}: {error.message}") from None
    return values


# The characters that end a sentence, and those that make a word of symbols, as code points in
# hexadecimal: no verdict depends on the Unicode version of a library.
_SENTENCE_ENDS = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e
1735-1736 17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e
1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7
a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61
10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd
111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642
1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f
16af5 16b37-16b38 16b44 16e98 1bc9f 1da88
"""
_SYMBOLS = """
0-1f 7f-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d 3010-3011
ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e
"""


def _ranges(text: str) -> frozenset[str]:
    """Return the characters of a list of code points and ranges."""
    found: set[str] = set()
    for part in text.split():
        low, _, high = part.partition("-")
        found.update(map(chr, range(int(low, 16), int(high or low, 16) + 1)))
    return frozenset(found)


SENTENCE_ENDS = _ranges(_SENTENCE_ENDS)
"""Unicode's Sentence_Terminal (159 characters of many scripts), as FineWeb's line rule uses it. An
ellipsis is not among them.
"""

SYMBOLS = SENTENCE_ENDS | _ranges(_SYMBOLS) | frozenset(string.punctuation)
"""Punctuation and control characters: a word of nothing else is no word for Gopher's counts
(datatrove's reading of the paper, its full-width digit one included).
"""


def filter_inputs(spec: FilterSpec) -> FilterInputs:
    """Return what a filter of ours declares that its verdicts depend on."""
    declared = getattr(_find(spec.class_path), "inputs", None)
    return FilterInputs() if declared is None else declared(spec.init_args)


def may_count_words(spec: FilterSpec) -> bool:
    """Tell whether a filter looks at words; of a user's own it is not known, so it may."""
    if spec.class_path not in FILTERS:
        return True
    return bool(getattr(_find(spec.class_path), "counts_words", True))
