"""C4's rules: keep the lines that are sentences, and the pages that have some.

Raffel et al. (2020), Exploring the Limits of Transfer Learning (JMLR 21, 20-074), section 2.2, with
the three rules that are only in the authors' code (words too long, citation marks, policy lines).
The same verdicts and texts as datatrove 0.10.1.

Like datatrove and the authors' code, and against the letter of the paper, "lorem ipsum" and a curly
bracket remove the page only when they occur in a line that the earlier rules have kept. So a page
of code is mostly removed for having no sentences. Words are counted before citation marks are
removed (the authors count after). The paper's list of bad words is not part of this filter.

Sentences are counted by their ends; the authors use NLTK's Punkt, a trained model. The number
matters only for pages with fewer kept lines than `min_sentences`, since a line has at least one.

Text without spaces between words (`View.language`) has other marks: there a line ends with any mark
of Unicode that ends a sentence, and such a mark needs no space behind it. Thai and Lao have none: a
line of theirs may end anyhow, and the spaces between their phrases end sentences.
"""

from __future__ import annotations

import re

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, SENTENCE_ENDS, Verdict, View, remove
from lit_pretrain.words import words

_LINE_ENDS = (".", "?", "!", '"', "'")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_PHRASES = re.compile("|".join(("lorem ipsum", "javascript", r"\{", *_POLICY)))
_SENTENCE_END = re.compile(r"[.?!]+[\"'”’)\]]*(?=\s|\Z)")
_WIDE_MARKS = re.escape("".join(sorted(SENTENCE_ENDS - {"."})))
_WIDE_CLOSERS = "」』）】》〉”’)"
_WIDE_END = re.compile(rf"[{_WIDE_MARKS}]+[\"'\]{_WIDE_CLOSERS}]*|{_SENTENCE_END.pattern}")
"""The end of a sentence in scripts without spaces; a full stop may stand within a number."""
_PHRASE_END = re.compile(r"(?<=\S)\s+(?=\S)|\Z")
_ENDLESS = frozenset({"th", "lo"})
"""Languages without marks that end sentences."""


class C4:
    """Drop lines, then remove pages with too little left.

    The lines of a kept text are stripped and joined by a line feed.

    Reasons: lorem_ipsum, curly_bracket, too_few_sentences, nothing_left. Changes: lines_dropped,
    citations_removed, white_space.

    Args:
        terminal_punctuation: Keep only lines that end in one of . ? ! " ' and not in "...".
            FineWeb's recipe switches it off.
        min_sentences: Fewest sentences in the lines that are kept; null for any number.
        min_words_per_line: Fewest words of a line; null for any number.
        max_word_length: Longest word of a line, in characters; null for any length.
        curly_brackets: Remove pages with "{" in such a line.
        javascript: Drop lines that mention JavaScript.
        policy: Drop lines about cookies, terms of use and privacy policies.
        lorem_ipsum: Remove pages with this phrase in such a line.
        citations: Take out Wikipedia's marks: [1], [], [edit], [citation needed].
    """

    def __init__(
        self,
        *,
        terminal_punctuation: bool = True,
        min_sentences: int | None = 5,
        min_words_per_line: int | None = 3,
        max_word_length: int | None = 1000,
        curly_brackets: bool = True,
        javascript: bool = True,
        policy: bool = True,
        lorem_ipsum: bool = True,
        citations: bool = True,
    ) -> None:
        self._terminal_punctuation = terminal_punctuation
        self._min_sentences = min_sentences or 0
        self._min_words_per_line = min_words_per_line or 0
        self._max_word_length = max_word_length
        self._curly_brackets = curly_brackets
        self._javascript = javascript
        self._policy = policy
        self._lorem_ipsum = lorem_ipsum
        self._citations = citations

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        # Most pages hold none of the phrases: search once instead of once a line.
        suspect = _PHRASES.search(view.lowered) is not None
        language = view.language
        kept: list[str] = []
        dropped = cited = False
        for whole in view.lines:
            line = stripped = whole.strip()
            if (
                self._max_word_length is not None
                and len(line) > self._max_word_length
                and self._has_long_word(line, language)
            ):
                dropped = True
                continue
            if self._citations and "[" in line:
                line = _CITATION.sub("", line)
            if (
                self._terminal_punctuation
                and (not line.endswith(_LINE_ENDS) or line.endswith("..."))
                and not (language and _ends_wide_sentence(line, language))
            ) or (
                self._min_words_per_line
                and len(
                    words(stripped) if language else stripped.split(None, self._min_words_per_line)
                )
                < self._min_words_per_line
            ):
                dropped = dropped or bool(stripped)
                continue
            if suspect or line is not stripped:  # Taking a mark out may join a phrase.
                removal, drop = self._phrases(line.lower())
                if removal:
                    return remove(removal)
                if drop:
                    dropped = True
                    continue
            cited = cited or len(line) != len(stripped)
            kept.append(line)
        if (
            len(kept) < self._min_sentences
            and sum(count_sentences(line, language) for line in kept) < self._min_sentences
        ):
            return remove("too_few_sentences")
        text = "\n".join(kept).strip()
        if not text:
            return remove("nothing_left")
        if text == view.text:
            return KEEP
        change = "lines_dropped" if dropped else "citations_removed" if cited else "white_space"
        return Verdict(True, change, text)

    def _has_long_word(self, line: str, language: str) -> bool:
        """Tell whether a line has a word above `max_word_length`."""
        found = words(line) if language else line.split()
        return max(map(len, found), default=0) > (self._max_word_length or 0)

    def _phrases(self, line: str) -> tuple[str, bool]:
        """Say why the page goes, and whether the line does, in the order of the authors' code."""
        if self._lorem_ipsum and "lorem ipsum" in line:
            return "lorem_ipsum", True
        if self._javascript and "javascript" in line:
            return "", True
        if self._curly_brackets and "{" in line:
            return "curly_bracket", True
        return "", self._policy and any(phrase in line for phrase in _POLICY)


def _ends_wide_sentence(line: str, language: str) -> bool:
    """Tell whether a line ends like a sentence of a language without spaces, and not in "..."."""
    if not line or line.endswith("..."):
        return False
    return language in _ENDLESS or line.rstrip(_WIDE_CLOSERS)[-1:] in SENTENCE_ENDS


def count_sentences(line: str, language: str = "") -> int:
    """Count the sentences of a line.

    A sentence ends with a run of . ? ! and what closes after it, before white space or the end of
    the line; an unfinished rest is one more.

    Args:
        line: The line.
        language: `View.language` of the text, whose marks end sentences.
    """
    line = line.rstrip()
    count, end = 0, 0
    ends = _SENTENCE_END if not language else _PHRASE_END if language in _ENDLESS else _WIDE_END
    for match in ends.finditer(line):
        count, end = count + 1, match.end()
    return max(1, count + (end < len(line)))
