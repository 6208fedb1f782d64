"""Spans: documents cut where the tokens of all compared runs end, and what kind each span is of.

With one tokenizer a span is a token. With several it is the shortest stretch of text that is a
whole number of tokens for all of them, so that its loss is a sum of tokens for each of them.

Losses are added up as whole numbers of ticks, 2^-30 nats each. Sums of whole numbers do not depend
on their order, so that the parts of a difference add up to it exactly, and a run differs from
itself by exactly 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TICK = 2.0**-30
"""Nats of a tick. fp32, which losses are computed in, is coarser above 2^-7 nats."""

END, OTHER = "end of the document", "spelt in other bytes"
"""Classes that views share: the target behind the last token, and documents whose text a tokenizer
has changed before it encoded it.
"""
KINDS = (
    "white space",
    "first piece of a word",
    "later piece of a word",
    "digits",
    "punctuation and symbols",
    "part of a character",
    END,
    OTHER,
)
REPEATS = (
    "pair of spans seen before",
    "span seen before",
    "new in the document",
    END,
    OTHER,
)
PLACES = (0, 64, 256, 1024, 4096, 16384)
"""Bytes of a document at which the classes of places begin."""


class SpanView(NamedTuple):
    """One way to sort all spans into classes."""

    title: str
    classes: tuple[str, ...]


VIEWS = (
    SpanView("kind of text", KINDS),
    SpanView(
        "place in the document",
        (
            *(f"bytes {low:,} to {high - 1:,}" for low, high in itertools.pairwise(PLACES)),
            f"bytes {PLACES[-1]:,} and later",
            OTHER,
        ),
    ),
    SpanView("repetition", REPEATS),
)


@dataclass(frozen=True)
class DocumentSpans:
    """The spans of one document, the same for every run."""

    cuts: npt.NDArray[np.int64]
    """Byte at which each span ends; one more entry, for the end of the document, if it is whole."""
    classes: tuple[npt.NDArray[np.int64], ...]
    """For each of `VIEWS`, the class of each span."""
    bytes: int
    aligned: bool
    """Whether the tokens of all runs spell the very bytes of the text."""


def document_spans(
    text: str, ends: Sequence[npt.NDArray[np.int64]], *, whole: bool
) -> DocumentSpans:
    """Cut a document into spans, and sort them.

    Args:
        text: The document.
        ends: Of each tokenizer, the byte at which each token ends.
        whole: Whether the end of the document is a target.
    """
    data = text.encode()
    size, tail = len(data), 1 if whole else 0
    if not all(len(e) and int(e[-1]) == size for e in ends):
        # Normalisation has changed the text: its spans are no stretches of the bytes.
        other = tuple(_numbers([len(view.classes) - 1] * (1 + tail)) for view in VIEWS)
        return DocumentSpans(_numbers([size] * (1 + tail)), other, size, aligned=False)
    cuts = np.unique(ends[0][ends[0] > 0])
    for others in ends[1:]:
        cuts = np.intersect1d(cuts, others)
    begins = [0, *cuts[:-1].tolist()]
    pieces = [data[a:b] for a, b in zip(begins, cuts.tolist(), strict=True)]
    places = np.searchsorted(PLACES, [*begins, *[size] * tail], side="right") - 1
    classes = (
        _numbers([*_kinds(pieces), *[KINDS.index(END)] * tail]),
        places.astype(np.int64),
        _numbers([*_repeats(pieces), *[REPEATS.index(END)] * tail]),
    )
    return DocumentSpans(np.append(cuts, [size] * tail).astype(np.int64), classes, size, True)


def _numbers(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _kinds(pieces: Sequence[bytes]) -> list[int]:
    """Sort spans by their first letter that is no white space, and by the letter before it."""
    known: dict[tuple[bytes, bool], int] = {}
    found, after_letter = [], False
    for piece in pieces:
        key = piece, after_letter
        if key not in known:
            known[key] = _kind(piece.decode(errors="replace"), after_letter)
        found.append(known[key])
        after_letter = piece.decode(errors="replace")[-1:].isalpha()
    return found


def _kind(text: str, after_letter: bool) -> int:
    bare = text.strip()
    if not bare:
        return KINDS.index("white space")
    first = bare[0]
    if first == "\ufffd":
        return KINDS.index("part of a character")
    if first.isalpha():
        inside = after_letter and not text[0].isspace()
        return KINDS.index("later piece of a word" if inside else "first piece of a word")
    return KINDS.index("digits" if first.isnumeric() else "punctuation and symbols")


def _repeats(pieces: Sequence[bytes]) -> list[int]:
    """Sort spans by whether the document has had them before, after the same span or at all."""
    seen: set[bytes] = set()
    pairs: set[tuple[bytes, bytes]] = set()
    found, before = [], b""
    for piece in pieces:
        pair = before, piece
        found.append(0 if pair in pairs else 1 if piece in seen else 2)
        pairs.add(pair)
        seen.add(piece)
        before = piece
    return found


def span_ticks(
    spans: DocumentSpans, nats: npt.NDArray[np.float32], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Add up the losses of a document's tokens by span, in ticks.

    Args:
        spans: Of the document.
        nats: Loss of each target.
        ends: Byte at which each token ends; one fewer than targets if the document is whole.
    """
    ticks = np.rint(nats.astype(np.float64) / TICK).astype(np.int64)
    whole = len(nats) > len(ends)
    inner = spans.cuts[:-1] if whole else spans.cuts
    places = (
        np.searchsorted(inner, ends, side="left")
        if spans.aligned
        else np.zeros(len(ends), dtype=np.int64)
    )
    if whole:
        places = np.append(places, len(inner))
    found = np.zeros(len(spans.cuts), dtype=np.int64)
    np.add.at(found, places, ticks)
    return found


def in_nats(ticks: int) -> float:
    """Convert ticks to nats; exact up to 8 million nats."""
    return math.ldexp(ticks, -30)
