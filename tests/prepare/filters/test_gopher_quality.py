"""Gopher's quality: each rule with a text that breaks it alone, and the neighbour that passes
all of them.
"""

import inspect
from typing import Any

import pytest

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import View
from lit_pretrain.prepare.filters.filter_spec import FILTER_PRESETS
from lit_pretrain.prepare.filters.gopher_quality import STOP_WORDS, GopherQuality

PUBLISHED: dict[str, Any] = {
    "min_words": 50,
    "max_words": 100_000,
    "min_mean_word_length": 3,
    "max_mean_word_length": 10,
    "max_symbols_per_word": 0.1,
    "max_bullet_lines": 0.9,
    "max_ellipsis_lines": 0.3,
    "min_alphabetic_words": 0.8,
    "min_stop_words": 2,
}


def reason(text: str, **arguments: Any) -> str:
    verdict = GopherQuality(**arguments)(Document(text=text, origin=""), View(text))
    assert verdict.keep == (not verdict.reason)
    return verdict.reason


def text(count: int, *others: str) -> str:
    """`count` words: the, of, the others, and houses."""
    return " ".join(["the", "of", *others, *["house"] * (count - 2 - len(others))])


def lines(*starts: str, end: tuple[str, ...] = ()) -> str:
    """Ten lines of six words and more, some with another start or end."""
    starts, end = starts + ("",) * (10 - len(starts)), end + ("",) * (10 - len(end))
    return "\n".join(
        f"{start}the house of six other words{last}"
        for start, last in zip(starts, end, strict=True)
    )


RULES = [
    ("too_few_words", "min_words", text(49), text(50)),
    ("too_few_words", "min_words", text(50, "--"), text(51, "--")),  # a word of symbols is none
    ("too_many_words", "max_words", text(100_001), text(100_000)),
    (
        "short_words",
        "min_mean_word_length",
        text(50, *["cat"] * 48),
        text(50, *["cat"] * 47),
    ),  # 149 letters, then 151
    (
        "long_words",
        "max_mean_word_length",
        text(50, *["x" * 10] * 47, "x" * 26),
        text(50, *["x" * 10] * 47, "x" * 25),
    ),  # 501, 500
    ("too_many_hashes", "max_symbols_per_word", text(50, *["is#"] * 6), text(50, *["is#"] * 5)),
    (
        "too_many_ellipses",
        "max_symbols_per_word",
        text(50, *["is..."] * 3, *["so…"] * 3),
        text(50, *["is..."] * 3, *["so…"] * 2),
    ),
    (
        "too_many_bullets",
        "max_bullet_lines",
        lines(*["- ", " • "] * 5),
        lines(*["- ", " • "] * 4, "- "),
    ),
    (
        "too_many_ellipsis_lines",
        "max_ellipsis_lines",
        lines(end=("...", "… ", "...", "…")),
        lines(end=("...", "… ", "...")),
    ),
    (
        "too_few_alphabetic_words",
        "min_alphabetic_words",
        text(100, *["12.5"] * 21),
        text(100, *["12.5"] * 20),
    ),
    ("too_few_stop_words", "min_stop_words", text(50).replace("of", "Of"), text(50)),
]


@pytest.mark.parametrize(("name", "rule", "broken", "neighbour"), RULES)
def test_rule(name: str, rule: str, broken: str, neighbour: str) -> None:
    assert reason(broken) == name
    assert reason(broken, **{rule: None}) == "", "it breaks that rule alone"
    assert reason(neighbour) == ""


def test_every_rule_has_its_test() -> None:
    assert {rule for _, rule, _, _ in RULES} == PUBLISHED.keys()


def test_preset_and_defaults_are_the_published_numbers() -> None:
    assert FILTER_PRESETS["gopher"][1].init_args == PUBLISHED
    defaults = {
        name: each.default for name, each in inspect.signature(GopherQuality).parameters.items()
    }
    assert defaults == {**PUBLISHED, "stop_words": None}
    assert STOP_WORDS == ("the", "be", "to", "of", "and", "that", "have", "with")


def test_stop_words_of_another_language() -> None:
    german = text(50, "der", "und")
    assert reason(german, stop_words=["der", "und", "nicht"]) == ""
    assert reason(german, stop_words=["der", "nicht"]) == "too_few_stop_words"


def test_a_text_without_words_is_too_short_whatever_the_threshold() -> None:
    off = dict.fromkeys(PUBLISHED)
    assert reason(" \n ", **off) == "too_few_words"
    assert reason("--", **off) == ""
    assert reason("--") == "too_few_words"
