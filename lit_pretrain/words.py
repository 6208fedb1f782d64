"""Words: what filters count, in scripts that put spaces between words and in those that do not.

A word is what stands between white space. The splitter changes verdicts more than any threshold
does (of the pages of the Python manual, 93 % pass Gopher's quality rules by white space and 3 % if
punctuation counts as words), so all filters share this one. Chinese, Japanese, Thai, Khmer, Lao and
Burmese have no space between words, so that a page would be a handful of words: there the words are
those of ICU's dictionaries, and each punctuation mark is one of its own. ICU comes with the package
icu4py (extra `words`); without it, such text is split at white space like all other.

ICU was chosen because one library covers all six, its data are the Unicode Consortium's, and it is
fast: 2.6 MB/s of Chinese and 6.7 of Thai, against 7.0 for rjieba, 2.6 for fugashi with UniDic, 0.8
for Sudachi, 0.4 for PyThaiNLP and 0.3 for BudouX (docs/experiments.md).

Comparisons between texts (near-duplicates, decontamination) split in another way, which does not
depend on what is installed (`hashing.plain_words`).
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

SEGMENTER = "icu4py"
"""The package that finds words where no spaces stand between them."""
_LEAST_SHARE = 5
"""A text is in a language without spaces if one of so many of its characters is of its script: the
others are digits, marks, names and code.
"""
_KANA_SHARE = 10
"""Of Han characters and kana, one in so many is kana in Japanese; in Chinese there are none."""

# Code points in hexadecimal. Marks of the scripts that are no letters are left out where they form
# a range of their own. Above U+FFFF, UTF-16 writes two units, of which the first tells enough.
_SCRIPTS = {
    "han": "3005-3007 3021-3029 3038-303b 3100-312f 31a0-31bf 3400-4dbf 4e00-9fff f900-faff"
    " d840-d8bf",
    "kana": "3041-309f 30a1-30fa 30fc-30ff 31f0-31ff ff66-ff9f d82b-d82c",
    "th": "e01-e3a e40-e5b",
    "lo": "e81-edf",
    "my": "1000-109f a9e0-a9fe aa60-aa7f",
    "km": "1780-17d3 17d7-17e9",
}


def _table() -> npt.NDArray[np.uint8]:
    """Map each UTF-16 unit to the number of its script, from 1; 0 for all others, [65536]."""
    table = np.zeros(1 << 16, dtype=np.uint8)
    for number, ranges in enumerate(_SCRIPTS.values(), start=1):
        for part in ranges.split():
            low, _, high = part.partition("-")
            table[int(low, 16) : int(high or low, 16) + 1] = number
    return table


_TABLE = _table()


def count_scripts(text: str) -> npt.NDArray[np.int64] | None:
    """Count the letters of each script without spaces; None if there is none, [scripts].

    It reads UTF-16 through a table: 500 MB/s, where a regular expression made 30.
    """
    if text.isascii():
        return None
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), dtype="<u2")
    found = _TABLE[units]
    if not found.any():
        return None
    return np.bincount(found, minlength=len(_SCRIPTS) + 1)[1:]


def language_without_spaces(text: str) -> str:
    """Name the language of a text that is written without spaces between words.

    Returns:
        zh, ja, th, lo, my or km; empty for all others.
    """
    counts = count_scripts(text)
    if counts is None or int(counts.sum()) * _LEAST_SHARE < len(text):
        return ""
    han, kana = int(counts[0]), int(counts[1])
    if han + kana >= int(counts[2:].max()):
        return "ja" if kana * _KANA_SHARE >= han + kana else "zh"
    return tuple(_SCRIPTS)[2 + int(counts[2:].argmax())]


@functools.cache
def has_segmenter() -> bool:
    """Tell whether the package that finds words without spaces is installed."""
    return importlib.util.find_spec(SEGMENTER) is not None


@functools.cache
def _segmenter() -> Callable[[str, str], Iterable[str]]:
    """Import the segmenter, once."""
    from icu4py.breakers import WordBreaker

    breaker: Callable[[str, str], Iterable[str]] = WordBreaker
    return breaker


def words(text: str) -> list[str]:
    """Split a text into words, as every filter does."""
    found = text.split()
    if not has_segmenter() or count_scripts(text) is None:
        return found
    breaker = _segmenter()
    split: list[str] = []
    for without_spaces, pieces in itertools.groupby(found, _has_letter_without_spaces):
        if without_spaces:  # a call for each piece would cost as much as its words
            joined = "\n".join(pieces)
            split += [word for word in breaker(joined, "root") if word != "\n"]
        else:
            split += pieces
    return split


def _has_letter_without_spaces(piece: str) -> bool:
    """Tell whether what stands between white space has a letter of these scripts."""
    return not piece.isascii() and count_scripts(piece) is not None
