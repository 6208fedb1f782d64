"""FineWeb's own rules, against lists, menus and pages that repeat their lines.

Penedo et al. (2024), The FineWeb Datasets (arXiv:2406.17557), section 3.6 "Developing additional
heuristic filters"; the rule on line breaks per word is only in their code. The same verdicts as
datatrove 0.10.1, with which the dataset was made.

For characters in repeated lines the paper gives 0.1; their code runs with 0.01, which is our
default. Bounds are strict, as in the code. FineWeb ran these after other rules; the whole recipe is
in `lit_pretrain.prepare.filters.filter_spec`.
"""

from __future__ import annotations

import copy

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, SENTENCE_ENDS, Verdict, View, remove
from lit_pretrain.prepare.filters.language_thresholds import LANGUAGE_THRESHOLDS, LanguageThresholds


class FineWeb:
    """Remove pages by the look of their lines.

    Blank lines do not count. A threshold of null switches its rule off.

    Reasons, in the order of the checks: blank, too_few_lines_end_a_sentence, too_many_short_lines,
    duplicate_line_characters, too_many_line_breaks.

    Args:
        min_sentence_end_lines: Smallest fraction of lines whose last character ends a sentence.
        max_short_lines: Largest fraction of lines of at most `short_line` characters.
        short_line: Length of a short line, in characters.
        max_duplicate_line_characters: Largest fraction of characters in lines that appeared before.
        max_line_breaks_per_word: Most line feeds per word.
        by_language: Judge text without spaces between words (`View.language`) by its language's
            thresholds, where these have their defaults here.
    """

    def __init__(
        self,
        *,
        min_sentence_end_lines: float | None = 0.12,
        max_short_lines: float | None = 0.67,
        short_line: int = 30,
        max_duplicate_line_characters: float | None = 0.01,
        max_line_breaks_per_word: float | None = 0.3,
        by_language: bool = True,
    ) -> None:
        self._min_sentence_end_lines = min_sentence_end_lines
        self._max_short_lines = max_short_lines
        self._short_line = short_line
        self._max_duplicate_line_characters = max_duplicate_line_characters
        self._max_line_breaks_per_word = max_line_breaks_per_word
        self._by_language = by_language

    def _in_language(self, thresholds: LanguageThresholds) -> FineWeb:
        """Return the same filter with the thresholds of a language in place of English's."""
        found = copy.copy(self)
        found._by_language = False
        found._min_sentence_end_lines = thresholds.laxer(
            "min_sentence_end_lines", self._min_sentence_end_lines
        )
        found._max_short_lines = thresholds.laxer("max_short_lines", self._max_short_lines)
        found._max_duplicate_line_characters = thresholds.laxer(
            "max_duplicate_line_characters", self._max_duplicate_line_characters
        )
        found._max_line_breaks_per_word = thresholds.laxer(
            "max_line_breaks_per_word", self._max_line_breaks_per_word
        )
        return found

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        if view.language and self._by_language:
            return self._in_language(LANGUAGE_THRESHOLDS[view.language])(document, view)
        lines = [row for row in view.rows if row and not row.isspace()]
        if not lines:
            return remove("blank")
        if self._min_sentence_end_lines is not None:
            ends = sum(line[-1] in SENTENCE_ENDS for line in lines)
            if ends / len(lines) < self._min_sentence_end_lines:
                return remove("too_few_lines_end_a_sentence")
        if self._max_short_lines is not None:
            short = sum(len(line) <= self._short_line for line in lines)
            if short / len(lines) > self._max_short_lines:
                return remove("too_many_short_lines")
        breaks = len(view.rows) - 1
        if self._max_duplicate_line_characters is not None:
            different = set(lines)
            if len(different) < len(lines):
                repeated = sum(map(len, lines)) - sum(map(len, different))
                if repeated / (len(view.text) - breaks) > self._max_duplicate_line_characters:
                    return remove("duplicate_line_characters")
        if (
            self._max_line_breaks_per_word is not None
            and breaks / len(view.words) > self._max_line_breaks_per_word
        ):
            return remove("too_many_line_breaks")
        return KEEP
