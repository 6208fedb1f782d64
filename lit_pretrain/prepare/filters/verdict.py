"""Verdict: what a filter says about one document."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.filters.view import View

_NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Verdict(NamedTuple):
    """Keep or remove, and why."""

    keep: bool
    """False removes the document."""
    reason: str = ""
    """Of a removal: the rule that was broken, in lower case with underscores. Of an edited text: what was done to it."""
    text: str | None = None
    """The text after the filter; None where the filter leaves it as it is."""
    fields: Mapping[str, str] = _NO_FIELDS
    """What the filter found out about the document (its language); goes over the document's own fields."""


KEEP = Verdict(keep=True)
"""Nothing to object to."""


def remove(reason: str) -> Verdict:
    """A removal."""
    return Verdict(keep=False, reason=reason)


class Filter(Protocol):
    """Anything that judges a document. The same document gives the same verdict, in every process and order."""

    def __call__(self, document: Document, view: View) -> Verdict:
        """Judges one document.

        Args:
            document: As the filters before left it.
            view: Its text, split and counted; shared by all filters of a chain.
        """
        ...
