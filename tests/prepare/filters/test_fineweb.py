"""FineWeb's own rules: each with a page that breaks it alone, and the neighbour that passes."""

import inspect
from typing import Any

import pytest

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import View
from lit_pretrain.prepare.filters.filter_spec import FILTER_PRESETS
from lit_pretrain.prepare.filters.fineweb import FineWeb

PUBLISHED: dict[str, Any] = {
    "min_sentence_end_lines": 0.12,
    "max_short_lines": 0.67,
    "short_line": 30,
    "max_duplicate_line_characters": 0.01,
    "max_line_breaks_per_word": 0.3,
}


def reason(text: str, **arguments: Any) -> str:
    verdict = FineWeb(**arguments)(Document(text=text, origin=""), View(text))
    assert verdict.keep == (not verdict.reason)
    return verdict.reason


def line(number: int, length: int = 40, end: str = ".") -> str:
    """A line of five words that no other number gives."""
    return f"line {number:04d} is a ".ljust(length - 1, "x") + end


def ends(count: int) -> str:
    return (
        "\n".join(line(n, end="." if n < count else ",") for n in range(100))
        + " and more words" * 20
        + "."
    )


def short(count: int) -> str:
    return "\n".join(line(n, length=30 if n < count else 31) for n in range(100))


def repeated(characters: int) -> str:
    """One line of 40 characters twice, in so many characters."""
    start = [line(0), line(0), *(line(n) for n in range(1, 98))]
    return "\n".join([*start, line(98, length=characters - 40 * len(start))])


def breaks(words: int) -> str:
    """Nine line feeds among so many words."""
    return (
        "\n".join(
            [
                *("three long-words-of-a-line-with-more end-it." + str(n) + "." for n in range(9)),
                " ".join(["x" * 40] * (words - 27)),
            ]
        )
        + "."
    )


RULES = [
    (
        "too_few_lines_end_a_sentence",
        "min_sentence_end_lines",
        ends(10),
        ends(11),
    ),  # the last line ends one, too
    ("too_many_short_lines", "max_short_lines", short(68), short(67)),
    ("duplicate_line_characters", "max_duplicate_line_characters", repeated(3999), repeated(4000)),
    ("too_many_line_breaks", "max_line_breaks_per_word", breaks(29), breaks(30)),
]


@pytest.mark.parametrize(("name", "rule", "broken", "neighbour"), RULES)
def test_rule(name: str, rule: str, broken: str, neighbour: str) -> None:
    assert reason(broken) == name
    assert reason(broken, **{rule: None}) == "", "it breaks that rule alone"
    assert reason(neighbour) == ""


def test_preset_and_defaults_are_the_published_numbers() -> None:
    assert FILTER_PRESETS["fineweb"][0].init_args == PUBLISHED
    assert {name: each.default for name, each in inspect.signature(FineWeb).parameters.items()} == {
        **PUBLISHED,
        "by_language": True,
    }


def test_blank_text_and_blank_lines() -> None:
    assert reason(" \n\t\n") == "blank"
    assert reason("\n  \n" + short(67)) == ""


def test_sentence_ends_of_other_scripts() -> None:
    assert (
        reason(
            "\n".join(f"第{n}行的文字说了一些事情。 其他的 词 在 这里。" for n in range(9)),
            max_short_lines=None,
        )
        == ""
    )
