"""Gopher's quality rules: text that does not look like text.

Rae et al. (2021), Scaling Language Models (arXiv:2112.11446), section A.1.1, "Quality Filtering".
The same verdicts as datatrove 0.10.1 with a white-space splitter. Of what the paper leaves open it
is the common reading: words made of symbols alone are left out of the number of words and of their
mean length, and stop words are compared as they stand ("The" is not "the").

Differences: null switches a rule off and 0 is a threshold (datatrove takes 0 for off); a text
without words fails as too_few_words where datatrove, with that rule off, divides by zero.
"""

from __future__ import annotations

import numpy as np

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, Verdict, View, remove
from lit_pretrain.prepare.filters.punctuation import SYMBOLS

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

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
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
