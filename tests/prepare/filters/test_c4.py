"""C4: each rule with a line or page that breaks it alone, and the neighbour that stays."""

import inspect
from typing import Any

import pytest

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.c4 import C4, count_sentences
from lit_pretrain.prepare.filters.filter import KEEP, Verdict, View
from lit_pretrain.prepare.filters.filter_spec import FILTER_PRESETS

PAGE = "\n".join(f"Line number {n} of this page says something." for n in range(5))


def judge(text: str, **arguments: Any) -> Verdict:
    return C4(**arguments)(Document(text=text, origin=""), View(text))


def test_preset_is_the_default() -> None:
    defaults = {name: each.default for name, each in inspect.signature(C4).parameters.items()}
    assert FILTER_PRESETS["c4"][0].init_args == defaults
    assert defaults["min_sentences"] == 5
    assert defaults["min_words_per_line"] == 3
    assert defaults["max_word_length"] == 1000


LINES = [
    ("terminal_punctuation", False, "This line has no end", "This line has an end."),
    ("terminal_punctuation", False, "This line ends in a comma,", "This line ends in a quote'"),
    ("terminal_punctuation", False, "This line trails off...", "Does this line end?"),
    ("min_words_per_line", None, "Two words.", "Now three words."),
    ("max_word_length", None, f"The word {'x' * 1001} is long.", f"The word {'x' * 1000} is long."),
    ("javascript", False, "Please switch JavaScript on.", "Please switch Java on."),
    *(
        (
            "policy",
            False,
            f"Here you find {phrase} and more.",
            f"Here you find {phrase.replace(' ', ' - ')} and more.",
        )
        for phrase in (
            "Terms of Use",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "use cookies",
        )
    ),
]


@pytest.mark.parametrize(("rule", "off", "broken", "neighbour"), LINES)
def test_rule_on_lines(rule: str, off: Any, broken: str, neighbour: str) -> None:
    assert judge(f"{PAGE}\n{broken}") == Verdict(True, "lines_dropped", PAGE)
    assert judge(f"{PAGE}\n{broken}", **{rule: off}) == KEEP, "it breaks that rule alone"
    assert judge(f"{PAGE}\n{neighbour}") == KEEP


PAGES = [
    ("lorem_ipsum", "Then comes Lorem ipsum as it does.", "Then comes Lorem, ipsum as it does."),
    ("lorem_ipsum", "A mark in lorem[1] ipsum joins it.", "A mark in lorem[1], ipsum parts it."),
    ("curly_bracket", "Then comes a { as it does.", "Then comes a } as it does."),
]


@pytest.mark.parametrize(("reason", "broken", "neighbour"), PAGES)
def test_rule_on_pages(reason: str, broken: str, neighbour: str) -> None:
    verdict = judge(f"{PAGE}\n{broken}")
    assert not verdict.keep
    assert verdict.reason == reason
    switch = {"lorem_ipsum": False} if reason == "lorem_ipsum" else {"curly_brackets": False}
    assert judge(f"{PAGE}\n{broken}", **switch).keep, "it breaks that rule alone"
    assert judge(f"{PAGE}\n{neighbour}").keep


def test_too_few_sentences() -> None:
    four, five = (
        "Only one two. Three four! Five six? Seven eight.",
        "Only one. Two three! Four five? Six seven. Eight.",
    )
    assert judge(four) == Verdict(False, "too_few_sentences")
    assert judge(four, min_sentences=None) == KEEP
    assert judge(five) == KEEP
    assert judge(PAGE) == KEEP
    assert not judge(PAGE.replace("4 of this page says something.", "4 has no end")).keep


def test_page_rules_look_at_kept_lines_only() -> None:
    """As datatrove and the authors' code do: what is dropped before cannot remove the page."""
    assert judge(f"{PAGE}\nvar x = {{\nlorem ipsum dolor") == Verdict(True, "lines_dropped", PAGE)


def test_citation_marks_are_taken_out() -> None:
    cited = (
        PAGE.replace("something.", "something[12][citation needed].")
        + "\nAn edit[edit] and an empty one[] here."
    )
    plain = PAGE + "\nAn edit and an empty one here."
    assert judge(cited) == Verdict(True, "citations_removed", plain)
    assert judge(cited, citations=False) == KEEP
    assert judge(PAGE + "\nThis stays: [a1] and [see 3].") == KEEP


def test_white_space_is_stripped_and_said_so() -> None:
    assert judge("  " + PAGE.replace("\n", " \r\n\n\t") + "\n", min_words_per_line=3) == Verdict(
        True, "white_space", PAGE
    )


def test_nothing_left() -> None:
    assert judge("no end", min_sentences=None) == Verdict(False, "nothing_left")


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("One sentence.", 1),
        ("No end", 1),
        ("One. Two", 2),
        ('He said "Stop!" Then he went.', 2),
        ("What?! Really (yes.) Fine...", 3),
        ("Version 3.11 is out.", 1),
        ("", 1),
    ],
)
def test_sentences(line: str, count: int) -> None:
    assert count_sentences(line) == count
