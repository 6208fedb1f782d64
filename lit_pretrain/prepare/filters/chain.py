"""Chain: filters one after the other, up to the first that objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.filters.load import expand, load, verdict_of
from lit_pretrain.prepare.filters.spec import FilterEntry
from lit_pretrain.prepare.filters.view import View


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one document."""

    document: Document
    """As the last filter saw it: with the edits and fields of those that it passed. Of a removed one, this is what to keep as reject."""
    removed_by: str
    """Name of the filter that removed it; empty: it is kept."""
    reason: str
    """Why it was removed; empty: it is kept."""
    passed: tuple[int, ...]
    """UTF-8 bytes of its text after each filter that let it through, in the order of `Chain.names`."""
    texts: tuple[str, ...]
    """Its text after each of these."""
    changed: tuple[tuple[str, str], ...]
    """(name of filter, what it did) of every filter that edited the text."""

    @property
    def kept(self) -> bool:
        """Whether every filter let it through."""
        return not self.removed_by


class Chain:
    """The filters of a config in their order. Holds no count and no document, so that one chain serves any number of sources.

    Args:
        entries: Names of presets and specs, as in the config.

    Raises:
        UserError: A filter cannot be found or built; see `load`.
    """

    def __init__(self, entries: Sequence[FilterEntry]) -> None:
        specs = expand(entries)
        self.names = _names([spec.class_path.rpartition(".")[2] for spec in specs])
        """Of the filters in their order: the class or function, with a number where it occurs again."""
        self._filters = list(zip(self.names, map(load, specs), strict=True))

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
                document = dataclasses.replace(document, fields={**document.fields, **verdict.fields})
            if not verdict.keep:
                return Outcome(document, name, verdict.reason, tuple(passed), tuple(texts), tuple(changed))
            if verdict.text is not None and verdict.text != document.text:
                if not verdict.text:  # a document is never empty
                    return Outcome(document, name, "nothing_left", tuple(passed), tuple(texts), tuple(changed))
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
