"""Gopher's rules, on texts that break one rule each."""

import inspect
from typing import Any

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, Verdict, View
from lit_pretrain.prepare.filters.filter_spec import FILTER_PRESETS
from lit_pretrain.prepare.filters.gopher import (
    DUPLICATE_NGRAMS,
    STOP_WORDS,
    TOP_NGRAMS,
    GopherQuality,
    GopherRepetition,
)

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


def objection(text: str, **arguments: Any) -> str:
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
    assert objection(broken) == name
    assert objection(broken, **{rule: None}) == "", "it breaks that rule alone"
    assert objection(neighbour) == ""


def test_every_rule_has_its_test() -> None:
    assert {rule for _, rule, _, _ in RULES} == PUBLISHED.keys()


def test_preset_and_defaults_are_the_published_numbers() -> None:
    assert FILTER_PRESETS["gopher"][1].init_args == PUBLISHED
    defaults = {
        name: each.default for name, each in inspect.signature(GopherQuality).parameters.items()
    }
    assert defaults == {**PUBLISHED, "stop_words": None, "by_language": True}
    assert STOP_WORDS == ("the", "be", "to", "of", "and", "that", "have", "with")


def test_stop_words_of_another_language() -> None:
    german = text(50, "der", "und")
    assert objection(german, stop_words=["der", "und", "nicht"]) == ""
    assert objection(german, stop_words=["der", "nicht"]) == "too_few_stop_words"


def test_a_text_without_words_is_too_short_whatever_the_threshold() -> None:
    off = dict.fromkeys(PUBLISHED)
    assert objection(" \n ", **off) == "too_few_words"
    assert objection("--", **off) == ""
    assert objection("--") == "too_few_words"


TABLE_A1: dict[str, Any] = {
    "max_duplicate_paragraphs": 0.30,
    "max_duplicate_paragraph_characters": 0.20,
    "max_duplicate_lines": 0.30,
    "max_duplicate_line_characters": 0.20,
    "top_ngrams": {2: 0.20, 3: 0.18, 4: 0.16},
    "duplicate_ngrams": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
}
OFF: dict[str, Any] = {name: {} if "ngrams" in name else None for name in TABLE_A1}


def judge(text: str, **arguments: Any) -> Verdict:
    return GopherRepetition(**arguments)(Document(text=text, origin=""), View(text))


def repetition(text: str, **arguments: Any) -> str:
    verdict = judge(text, **arguments)
    assert verdict.keep == (not verdict.reason)
    return verdict.reason


def test_the_preset_is_table_a1() -> None:
    assert FILTER_PRESETS["gopher"][0].init_args == TABLE_A1


def test_defaults_are_table_a1() -> None:
    defaults = {
        name: each.default for name, each in inspect.signature(GopherRepetition).parameters.items()
    }
    assert {
        **defaults,
        "top_ngrams": dict(TOP_NGRAMS),
        "duplicate_ngrams": dict(DUPLICATE_NGRAMS),
    } == {**TABLE_A1, "by_language": True}


@pytest.mark.parametrize(
    ("rule", "separator"), [("max_duplicate_paragraphs", "\n\n"), ("max_duplicate_lines", "\n")]
)
def test_fraction_of_parts(rule: str, separator: str) -> None:
    def text(repeated: int) -> str:
        """Ten parts, some of which are repetitions of one short one."""
        different = [
            f"a part of three lines, number {n}\nsecond {n}\nthird {n}"
            if separator != "\n"
            else f"line {n}"
            for n in range(20)
        ]
        return separator.join(different[: 10 - repeated - 1] + ["no"] * (repeated + 1))

    only = {**OFF, rule: TABLE_A1[rule]}
    name = rule.removeprefix("max_")
    assert repetition(text(4), **only) == name
    assert repetition(text(3), **only) == ""
    assert (
        repetition(text(4), **{**TABLE_A1, rule: None, "top_ngrams": {}, "duplicate_ngrams": {}})
        == ""
    ), "no other rule on parts objects"
    assert repetition(text(4)) == name, "and it is the first to object"


@pytest.mark.parametrize(
    ("rule", "separator"),
    [("max_duplicate_paragraph_characters", "\n\n"), ("max_duplicate_line_characters", "\n")],
)
def test_fraction_of_characters_in_parts(rule: str, separator: str) -> None:
    def text(size: int) -> str:
        """20 characters that appeared before, among `size`."""
        start = f"{'p' * 20}{separator}{'p' * 20}{separator}"
        return start + "f" * (size - len(start))

    only = {**OFF, rule: TABLE_A1[rule]}
    assert len(text(99)) == 99
    assert repetition(text(99), **only) == rule.removeprefix("max_")
    assert repetition(text(100), **only) == ""


@pytest.mark.parametrize(("n", "limit"), TABLE_A1["top_ngrams"].items())
def test_top_ngram(n: int, limit: float) -> None:
    ngram = " ".join("abcdefghijk"[place] * 2 for place in range(n))
    size = next(
        size for size in range(1000) if size and 2 * len(ngram) / size <= limit
    )  # 2 of them in so many characters pass

    def text(size: int) -> str:
        return f"{ngram} {'f' * (size - 2 * len(ngram) - 2)} {ngram}"

    only = {**OFF, "top_ngrams": {n: limit}}
    assert len(text(size)) == size
    assert repetition(text(size - 1), **only) == f"top_{n}_gram"
    assert repetition(text(size), **only) == ""


@pytest.mark.parametrize(("n", "limit"), TABLE_A1["duplicate_ngrams"].items())
def test_duplicate_ngrams(n: int, limit: float) -> None:
    ngram = " ".join("abcdefghijk"[place] * 2 for place in range(n))
    size = next(
        size for size in range(1000) if size and 2 * n / size <= limit
    )  # the second one's letters in so many characters pass

    def text(size: int) -> str:
        return f"{ngram} {'f' * (size - 2 * len(ngram) - 2)} {ngram}"

    only = {**OFF, "duplicate_ngrams": {n: limit}}
    assert len(text(size)) == size
    assert repetition(text(size - 1), **only) == f"duplicate_{n}_grams"
    assert repetition(text(size), **only) == ""


def test_duplicates_are_counted_without_overlap() -> None:
    """Of eleven equal words the first five are new, the five after the first and the last five
    are not: 20 letters of 32 characters.
    """
    text = " ".join(["ha"] * 11)
    assert (
        repetition(text, **{**OFF, "duplicate_ngrams": {5: 20 / 32 - 0.001}}) == "duplicate_5_grams"
    )
    assert repetition(text, **{**OFF, "duplicate_ngrams": {5: 20 / 32}}) == ""


def test_of_equally_frequent_ngrams_the_first_counts() -> None:
    short, long = "a b", "longer words"
    rest = "x" * 40
    only = {**OFF, "top_ngrams": {2: 0.2}}
    assert repetition(f"{short} {long} {rest} {long} {short}", **only) == ""
    assert repetition(f"{long} {short} {rest} {short} {long}", **only) == "top_2_gram"


def test_an_ngram_of_one_word_is_refused() -> None:
    with pytest.raises(UserError, match=r"duplicate_ngrams.*at least 2 words"):
        GopherRepetition(duplicate_ngrams={1: 0.5})


def test_text_of_white_space_and_of_one_word() -> None:
    assert judge("  ", **TABLE_A1) == KEEP
    assert judge("word", **TABLE_A1) == KEEP
