"""Filter: what judges one document, what it is given, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lit_pretrain.hashing import words
from lit_pretrain.prepare.document_store import Document

_NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Filter(Protocol):
    """Judge documents. The same document gets the same verdict in every process and order."""

    def __call__(self, document: Document, view: View) -> Verdict:
        """Judge one document.

        Args:
            document: The document as the filters before left it.
            view: Its text, split and counted; all filters of a chain share it.
        """
        ...


class Verdict(NamedTuple):
    """Keep or remove a document, and why."""

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


KEEP = Verdict(keep=True)
"""The verdict on a document that breaks no rule."""


def remove(reason: str) -> Verdict:
    """Return the verdict that removes a document."""
    return Verdict(keep=False, reason=reason)


class View:
    """One text, split and counted; each part is computed once, when a filter first needs it.

    Words are white-space words everywhere (see `lit_pretrain.hashing`). A view is held for one
    document at a time: words and lines as strings, and a few integers for each word. For Gopher's
    filters 17 times the text was measured on 0.9 MB of code.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """White-space words."""
        return words(self.text)

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
