"""Gopher's rules: text that does not look like text, and text that repeats itself.

Rae et al. (2021), Scaling Language Models (arXiv:2112.11446), section A.1.1, "Quality Filtering"
and table A1. The verdicts are those of datatrove 0.10.1 with a white-space splitter, whose reading
of what the paper leaves open is the common one.

`GopherQuality`: words made of symbols alone are left out of the number of words and of their mean
length, and stop words are compared as they stand ("The" is not "the"). Two differences from
datatrove: null switches a rule off and 0 is a threshold (there 0 means off); a text without words
fails as too_few_words (there, with that rule off, it divides by zero).

`GopherRepetition`: fractions of characters are taken of the whole text, white space included; among
equally frequent n-grams the first to appear is the top one; the duplicates of an n-gram are counted
from left to right without overlap. One difference: datatrove compares runs of 5 to 10 words by
their letters without the spaces, so that "ab c" repeats "a bc"; here two runs are equal when their
words are. One oddity of theirs stays: an n-gram that occurs once counts as top, so that a text of a
handful of words always fails.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, SYMBOLS, Verdict, View, remove
from lit_pretrain.prepare.filters.language_thresholds import LANGUAGE_THRESHOLDS, LanguageThresholds

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""The eight English words of the paper."""


class GopherQuality:
    """Remove texts by simple counts. A threshold of null switches its rule off.

    Reasons, in the order of the checks: too_few_words, too_many_words, short_words, long_words,
    too_many_hashes, too_many_ellipses, too_many_bullets, too_many_ellipsis_lines,
    too_few_alphabetic_words, too_few_stop_words.

    Args:
        min_words: Fewest words, not counting words of symbols alone.
        max_words: Most words, counted likewise.
        min_mean_word_length: Smallest mean length of these words, in characters.
        max_mean_word_length: Largest mean length of these words.
        max_symbols_per_word: Most hash signs per word, and most ellipses ("..." or "…") per word.
        max_bullet_lines: Largest fraction of lines that start with "•" or "-".
        max_ellipsis_lines: Largest fraction of lines that end with an ellipsis.
        min_alphabetic_words: Smallest fraction of words with at least one letter.
        min_stop_words: Fewest different stop words.
        stop_words: The stop words; give others for other languages. Default: `STOP_WORDS`.
        by_language: Judge text without spaces between words (`View.language`) by its language's
            mean lengths, letters and stop words, where these have their defaults here.
    """

    def __init__(
        self,
        *,
        min_words: int | None = 50,
        max_words: int | None = 100_000,
        min_mean_word_length: float | None = 3,
        max_mean_word_length: float | None = 10,
        max_symbols_per_word: float | None = 0.1,
        max_bullet_lines: float | None = 0.9,
        max_ellipsis_lines: float | None = 0.3,
        min_alphabetic_words: float | None = 0.8,
        min_stop_words: int | None = 2,
        stop_words: list[str] | None = None,
        by_language: bool = True,
    ) -> None:
        self._min_words = min_words
        self._max_words = max_words
        self._min_mean_word_length = min_mean_word_length
        self._max_mean_word_length = max_mean_word_length
        self._max_symbols_per_word = max_symbols_per_word
        self._max_bullet_lines = max_bullet_lines
        self._max_ellipsis_lines = max_ellipsis_lines
        self._min_alphabetic_words = min_alphabetic_words
        self._min_stop_words = min_stop_words
        self._stop_words = frozenset(STOP_WORDS if stop_words is None else stop_words)
        self._by_language = by_language

    def _in_language(self, thresholds: LanguageThresholds) -> GopherQuality:
        """Return the same filter with the thresholds of a language in place of English's."""
        found = copy.copy(self)
        found._by_language = False
        found._min_mean_word_length = thresholds.laxer(
            "min_mean_word_length", self._min_mean_word_length
        )
        found._max_mean_word_length = thresholds.laxer(
            "max_mean_word_length", self._max_mean_word_length
        )
        found._min_alphabetic_words = thresholds.laxer(
            "min_alphabetic_words", self._min_alphabetic_words
        )
        if self._stop_words == frozenset(STOP_WORDS):
            found._stop_words = thresholds.stop_words
        return found

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        if view.language and self._by_language:
            return self._in_language(LANGUAGE_THRESHOLDS[view.language])(document, view)
        reason = self._words(view) or self._lines(view) or self._vocabulary(view)
        return remove(reason) if reason else KEEP

    def _words(self, view: View) -> str:
        """Check the number and mean length of the words that are not symbols alone."""
        symbols = np.array(
            [
                number
                for word, number in view.vocabulary.items()
                if not word.isalpha() and SYMBOLS.issuperset(word)
            ],
            dtype=np.int64,
        )
        total = len(view.words) - int(view.counts[symbols].sum())
        if not view.words or (self._min_words is not None and total < self._min_words):
            return "too_few_words"
        if self._max_words is not None and total > self._max_words:
            return "too_many_words"
        if total:
            weights = view.counts * view.lengths
            mean = int(weights.sum() - weights[symbols].sum()) / total
            if self._min_mean_word_length is not None and mean < self._min_mean_word_length:
                return "short_words"
            if self._max_mean_word_length is not None and mean > self._max_mean_word_length:
                return "long_words"
        return ""

    def _lines(self, view: View) -> str:
        """Check symbols, and the lines that start or end with them.

        A text has at least as many of a symbol as lines that show it, so the lines are looked at
        only where the symbols are many.
        """
        text, total, lines = view.text, len(view.words), len(view.lines)
        ellipses = text.count("...") + text.count("…")
        if self._max_symbols_per_word is not None:
            if text.count("#") / total > self._max_symbols_per_word:
                return "too_many_hashes"
            if ellipses / total > self._max_symbols_per_word:
                return "too_many_ellipses"
        if (
            self._max_bullet_lines is not None
            and (text.count("-") + text.count("•")) / lines > self._max_bullet_lines
        ):
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in view.lines)
            if bullets / lines > self._max_bullet_lines:
                return "too_many_bullets"
        if self._max_ellipsis_lines is not None and ellipses / lines > self._max_ellipsis_lines:
            ends = sum(line.rstrip().endswith(("...", "…")) for line in view.lines)
            if ends / lines > self._max_ellipsis_lines:
                return "too_many_ellipsis_lines"
        return ""

    def _vocabulary(self, view: View) -> str:
        """Check letters and stop words; each distinct word is looked at once."""
        if self._min_alphabetic_words is not None:
            letterless = np.array(
                [
                    number
                    for word, number in view.vocabulary.items()
                    if not word.isalpha() and not any(map(str.isalpha, word))
                ],
                dtype=np.int64,
            )
            total = len(view.words)
            if (total - int(view.counts[letterless].sum())) / total < self._min_alphabetic_words:
                return "too_few_alphabetic_words"
        if (
            self._min_stop_words is not None
            and sum(word in view.vocabulary for word in self._stop_words) < self._min_stop_words
        ):
            return "too_few_stop_words"
        return ""


TOP_NGRAMS: Mapping[int, float] = MappingProxyType({2: 0.20, 3: 0.18, 4: 0.16})
"""Words of an n-gram -> largest fraction of characters in the most frequent one (table A1)."""
DUPLICATE_NGRAMS: Mapping[int, float] = MappingProxyType(
    {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
)
"""Words of an n-gram -> largest fraction of characters in those that appeared before (table A1)."""


class GopherRepetition:
    """Remove texts with too many repeated lines, paragraphs or n-grams.

    A threshold of null switches its rule off.

    Reasons, in the order of the checks: duplicate_paragraphs, duplicate_paragraph_characters,
    duplicate_lines, duplicate_line_characters, top_2_gram (3, 4), duplicate_5_grams (6 ... 10).

    Args:
        max_duplicate_paragraphs: Fraction of paragraphs that appeared before.
        max_duplicate_paragraph_characters: Fraction of characters in them.
        max_duplicate_lines: Fraction of lines that appeared before; empty lines are not counted.
        max_duplicate_line_characters: Fraction of characters in them.
        top_ngrams: Words of an n-gram -> largest fraction of characters in the most frequent one.
            Default: `TOP_NGRAMS`.
        duplicate_ngrams: Words of an n-gram -> largest fraction of characters in repeated ones.
            Default: `DUPLICATE_NGRAMS`.
        by_language: Judge text without spaces between words (`View.language`) by its language's
            thresholds of duplicate lines and of n-grams, where these have their defaults here.
    """

    def __init__(
        self,
        *,
        max_duplicate_paragraphs: float | None = 0.30,
        max_duplicate_paragraph_characters: float | None = 0.20,
        max_duplicate_lines: float | None = 0.30,
        max_duplicate_line_characters: float | None = 0.20,
        top_ngrams: dict[int, float] | None = None,
        duplicate_ngrams: dict[int, float] | None = None,
        by_language: bool = True,
    ) -> None:
        self._max_paragraphs = max_duplicate_paragraphs
        self._max_paragraph_characters = max_duplicate_paragraph_characters
        self._max_lines = max_duplicate_lines
        self._max_line_characters = max_duplicate_line_characters
        self._top: Mapping[int, float] = TOP_NGRAMS if top_ngrams is None else top_ngrams
        self._duplicate: Mapping[int, float] = (
            DUPLICATE_NGRAMS if duplicate_ngrams is None else duplicate_ngrams
        )
        self._by_language = by_language
        for name, thresholds in (("top_ngrams", self._top), ("duplicate_ngrams", self._duplicate)):
            if any(n < 2 for n in thresholds):
                raise UserError(
                    f"{name}={thresholds}: an n-gram has at least 2 words; it maps their number to"
                    " the largest fraction"
                )

    def _in_language(self, thresholds: LanguageThresholds) -> GopherRepetition:
        """Return the same filter with the thresholds of a language in place of English's."""
        found = copy.copy(self)
        found._by_language = False
        found._max_lines = thresholds.laxer("max_duplicate_lines", self._max_lines)
        found._top = _laxer_ngrams(self._top, TOP_NGRAMS, thresholds.top_ngrams)
        found._duplicate = _laxer_ngrams(
            self._duplicate, DUPLICATE_NGRAMS, thresholds.duplicate_ngrams
        )
        return found

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        if view.language and self._by_language:
            return self._in_language(LANGUAGE_THRESHOLDS[view.language])(document, view)
        size = len(view.text)
        stripped = view.text.strip()
        if "\n\n" in stripped:
            repeated, fraction = _repeated(_paragraphs(stripped))
            if _above(fraction, self._max_paragraphs):
                return remove("duplicate_paragraphs")
            if _above(repeated / size, self._max_paragraph_characters):
                return remove("duplicate_paragraph_characters")
        repeated, fraction = _repeated(_lines(view))
        if _above(fraction, self._max_lines):
            return remove("duplicate_lines")
        if _above(repeated / size, self._max_line_characters):
            return remove("duplicate_line_characters")
        return self._ngrams(view, size)

    def _ngrams(self, view: View, size: int) -> Verdict:
        """Check n-grams from the shortest to the longest: the longer, the rarer are repeats."""
        total = len(view.ids)
        ends = np.zeros(total + 1, dtype=np.int64)  # Characters of the words before each word.
        np.cumsum(view.lengths[view.ids], out=ends[1:])
        repeats = _Repeats.of_words(view)
        for n in range(2, max((*self._top, *self._duplicate), default=0) + 1):
            if n > total:
                break
            repeats = repeats.longer()
            if n in self._top:
                first, count = repeats.top()
                if count * int(ends[first + n] - ends[first] + n - 1) / size > self._top[n]:
                    return remove(f"top_{n}_gram")
            if (
                n in self._duplicate
                and repeats.duplicate_characters_at_most(ends, n) / size > self._duplicate[n]
                and repeats.duplicate_characters(ends, n) / size > self._duplicate[n]
            ):
                return remove(f"duplicate_{n}_grams")
        return KEEP


def _laxer_ngrams(
    own: Mapping[int, float], english: Mapping[int, float], language: Mapping[int, float]
) -> dict[int, float]:
    """Choose the thresholds of n-grams for a language; those of other lengths stay."""
    return {
        n: max(value, language[n]) if n in language and value == english[n] else value
        for n, value in own.items()
    }


@dataclass(frozen=True, slots=True)
class _Repeats:
    """The n-grams of a text that occur more than once, for one n.

    An (n+1)-gram repeats only where the n-grams at both of its ends do, and is known by their pair.
    So each n looks only at the places that the one before left, and compares pairs of small
    integers: exact, with no hash that could collide.
    """

    places: npt.NDArray[np.int64]
    """Where they start, in words, ascending: [places]."""
    groups: npt.NDArray[np.int64]
    """Number of the n-gram at each place, from 0, each at least twice: [places]."""
    firsts: npt.NDArray[np.int64]
    """First place of each n-gram: [groups]."""
    counts: npt.NDArray[np.int64]
    """How often each occurs: [groups]."""

    @classmethod
    def of_words(cls, view: View) -> _Repeats:
        """Find the words that repeat (n = 1).

        A word's id says how often it occurs, so that nothing is sorted yet.
        """
        several = view.counts > 1
        number = np.cumsum(several) - 1
        places = np.flatnonzero(several[view.ids])
        groups = number[view.ids[places]]
        firsts = np.empty(int(several.sum()), dtype=np.int64)
        firsts[groups[::-1]] = places[::-1]  # The last one written is the first one of the text.
        return cls(places, groups, firsts, view.counts[several])

    @classmethod
    def _of(cls, places: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> _Repeats:
        """Group places by their keys and drop what stands alone."""
        if not len(places):
            return cls(places, keys, places, places)
        order = keys.argsort()
        ranked = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
        counts = np.diff(starts, append=len(keys))
        several = counts > 1
        number = np.where(several, np.cumsum(several) - 1, -1)  # Groups of one get -1.
        groups = np.empty_like(keys)
        groups[order] = np.repeat(number, counts)
        kept = groups >= 0
        # The sort is not stable: the first place of a group is the smallest.
        firsts = np.minimum.reduceat(order, starts)[several]
        return cls(places[kept], groups[kept], places[firsts], counts[several])

    def longer(self) -> _Repeats:
        """Find the (n + 1)-grams that repeat."""
        following = np.flatnonzero(self.places[1:] == self.places[:-1] + 1)
        return self._of(
            self.places[following],
            self.groups[following] * len(self.firsts) + self.groups[following + 1],
        )

    def top(self) -> tuple[int, int]:
        """Return (place, count) of the most frequent n-gram; of several, the first to appear.

        If all are different, it is the first of the text.
        """
        if not len(self.counts):
            return 0, 1
        most = int(self.counts.max())
        return int(self.firsts[self.counts == most].min()), most

    def duplicate_characters_at_most(self, ends: npt.NDArray[np.int64], n: int) -> int:
        """Bound `duplicate_characters` from above by all that later occurrences cover.

        It is cheap, and mostly enough.
        """
        later = self.places[self.firsts[self.groups] != self.places]
        if not len(later):
            return 0
        breaks = np.flatnonzero(np.diff(later) != 1)
        starts = later[np.concatenate(([0], breaks + 1))]
        lasts = later[np.concatenate((breaks, [len(later) - 1]))]
        return int((ends[lasts + n] - ends[starts]).sum())

    def duplicate_characters(self, ends: npt.NDArray[np.int64], n: int) -> int:
        """Count the characters in n-grams that appeared before, from left to right.

        A repeated n-gram is counted and skipped; what is skipped is not remembered as seen. Only
        the places in `self` can be repeated or be the first of a repeated one.
        """
        seen: set[int] = set()
        characters, next_place = 0, 0
        for place, group in zip(self.places.tolist(), self.groups.tolist(), strict=True):
            if place < next_place:
                continue
            if group in seen:
                characters += int(ends[place + n] - ends[place])
                next_place = place + n
            else:
                seen.add(group)
        return characters


def _above(value: float, limit: float | None) -> bool:
    """Compare with a threshold, which may be switched off."""
    return limit is not None and value > limit


def _paragraphs(stripped: str) -> list[str]:
    """Split at runs of two and more line feeds.

    It takes a third of the time of a regular expression, which was the costliest line here.
    """
    return [paragraph for part in stripped.split("\n\n") if (paragraph := part.lstrip("\n"))]


def _lines(view: View) -> list[str]:
    """Split at runs of line feeds.

    Text that begins or ends with one has an empty line there, as in datatrove.
    """
    lines = [row for row in view.rows if row]
    return lines + [""] * (view.text.startswith("\n") + view.text.endswith("\n"))


def _repeated(parts: list[str]) -> tuple[int, float]:
    """Return the characters in parts that appeared before, and the fraction of such parts."""
    different = set(parts)
    if len(different) == len(parts):
        return 0, 0.0
    repeated = sum(map(len, parts)) - sum(map(len, different))
    return repeated, (len(parts) - len(different)) / len(parts)
