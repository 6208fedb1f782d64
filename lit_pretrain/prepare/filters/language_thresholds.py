"""Thresholds for languages that are written without spaces, as FineWeb-2 found them.

Penedo et al. (2025), FineWeb2 (arXiv:2506.20920). The numbers are those of its public code, in
`configs/`: cmn_Hani, jpn_Jpan, tha_Thai, khm_Khmr, lao_Laoo and mya_Mymr. They were chosen with
other segmenters than ours. Two of its stop words are left out, because they are no words of a text:
the middle dot, and the space without width.

Of a threshold and English's, the laxer one holds. Where FineWeb-2's is stricter, it removed pages
that had nothing wrong with them: all sentences of a Japanese manual end in the same two words, and
a quarter of the Khmer pages have more marks than its segmenter counts (docs/experiments.md). A
threshold that was set to another value than English's stays as it is: who sets it knows the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class LanguageThresholds:
    """What FineWeb-2 has in place of Gopher's and FineWeb's English thresholds."""

    min_mean_word_length: float
    max_mean_word_length: float
    min_alphabetic_words: float
    stop_words: frozenset[str]
    max_duplicate_lines: float
    top_ngrams: Mapping[int, float]
    """For 2, 3 and 4 words."""
    duplicate_ngrams: Mapping[int, float]
    """For 5 to 10 words."""
    min_sentence_end_lines: float
    max_line_breaks_per_word: float
    max_duplicate_line_characters: float = 0.1
    """The same for all of FineWeb-2's languages, as in the paper of FineWeb."""
    max_short_lines: float = 1.0
    """FineWeb-2 has no such rule: 30 characters are a phrase in English, and a sentence here."""

    def laxer(self, name: str, own: float | None) -> float | None:
        """Choose a threshold for a text in this language.

        Args:
            name: The threshold; `min_` or `max_` says whether it is a least or a largest value.
            own: The filter's, as the config has it.

        Returns:
            The laxer of English's and the language's; the filter's own if it is not English's.
        """
        english = ENGLISH[name]
        if own != english:
            return own
        language: float = getattr(self, name)
        return min(english, language) if name.startswith("min_") else max(english, language)


ENGLISH: Mapping[str, float] = MappingProxyType(
    {
        "min_mean_word_length": 3,
        "max_mean_word_length": 10,
        "min_alphabetic_words": 0.8,
        "max_duplicate_lines": 0.30,
        "min_sentence_end_lines": 0.12,
        "max_line_breaks_per_word": 0.3,
        "max_duplicate_line_characters": 0.01,
        "max_short_lines": 0.67,
    }
)
"""Defaults of Gopher's and FineWeb's filters, under the names of `LanguageThresholds`. That of the
characters in duplicate lines is FineWeb's: Gopher's stays in every language.
"""


def _thresholds(
    mean_length: tuple[float, float],
    alphabetic: float,
    stop_words: str,
    lines: tuple[float, float, float],
    top: tuple[float, float, float],
    duplicate: tuple[float, float, float, float, float, float],
) -> LanguageThresholds:
    """Write the thresholds of a language by their names.

    Args:
        mean_length: Smallest and largest mean length of a word, in characters.
        alphabetic: Smallest fraction of words with a letter.
        stop_words: The stop words, with spaces between them.
        lines: Largest fraction of duplicate lines, smallest of lines that end a sentence, and most
            line feeds per word.
        top: For the most frequent 2-, 3- and 4-gram.
        duplicate: For duplicate 5- to 10-grams.
    """
    return LanguageThresholds(
        min_mean_word_length=mean_length[0],
        max_mean_word_length=mean_length[1],
        min_alphabetic_words=alphabetic,
        stop_words=frozenset(stop_words.split()),
        max_duplicate_lines=lines[0],
        min_sentence_end_lines=lines[1],
        max_line_breaks_per_word=lines[2],
        top_ngrams=MappingProxyType(dict(zip((2, 3, 4), top, strict=True))),
        duplicate_ngrams=MappingProxyType(dict(zip(range(5, 11), duplicate, strict=True))),
    )


LANGUAGE_THRESHOLDS: Mapping[str, LanguageThresholds] = MappingProxyType(
    {
        "zh": _thresholds(
            (1, 5),
            0.735,
            "的 年 在 月 是 和 日 了 於 為 有 被 人 中 为 他 與 後 也 而 由",
            (0.287, 0.106, 0.178),
            (0.256, 0.201, 0.171),
            (0.198, 0.182, 0.167, 0.154, 0.14, 0.127),
        ),
        "ja": _thresholds(
            (1, 5),
            0.759,
            "の に を は た て が と で 年 し 月 れ さ",
            (0.375, 0.167, 0.162),
            (0.121, 0.129, 0.145),
            (0.307, 0.283, 0.264, 0.248, 0.234, 0.223),
        ),
        "th": _thresholds(
            (2, 10),
            0.9,
            "ใน ที่ และ ของ เป็น มี การ ได้",
            (0.349, 0.0, 0.153),
            (0.221, 0.197, 0.162),
            (0.185, 0.168, 0.152, 0.137, 0.124, 0.111),
        ),
        "km": _thresholds(
            (2, 13),
            0.905,
            "មាន បាន ដែល ជា និង នៅ របស់ ក្នុង ថា នេះ នៃ ហើយ ទៅ ដោយ",
            (0.92, 0.077, 0.667),
            (0.165, 0.225, 0.242),
            (0.197, 0.168, 0.148, 0.126, 0.107, 0.094),
        ),
        "lo": _thresholds(
            (2, 9),
            0.85,
            "ແລະ ໃນ ຂອງ ເປັນ ທີ່ ໄດ້ ມີ",
            (0.327, 0.0, 0.2),
            (0.198, 0.175, 0.143),
            (0.187, 0.175, 0.163, 0.149, 0.135, 0.123),
        ),
        "my": _thresholds(
            (2, 21),
            0.75,
            "သည် များ ကို တွင် ဖြစ် ၏ သော ခဲ့ နှင့် ရှိ တို့ မှာ ဦး ၌ က မ မှ",
            (0.308, 0.0, 0.125),
            (0.074, 0.097, 0.115),
            (0.161, 0.132, 0.118, 0.101, 0.09, 0.079),
        ),
    }
)
"""By the names of `View.language`."""
