"""Words: what counts as one, and hashes that never change and stand for runs of words."""

import subprocess
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain import hashing
from lit_pretrain.hashing import hash_ngrams, hash_words, plain_words

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """Steele, Lea & Flood (2014), in Python's integers."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "It's A TEST, snake_case & x=1.5!",
            ["it", "s", "a", "test", "snake", "case", "x", "1", "5"],
        ),
        (
            "It\u2019s \u201cquoted\u201d \u2013 so\u2014so\u2026\u00a0end",
            ["it", "s", "quoted", "so", "so", "end"],
        ),
        (
            "\u00c9t\u00e9 na\u00efve \u2019n stra\u00dfe",
            ["\u00e9t\u00e9", "na\u00efve", "n", "stra\u00dfe"],
        ),
        (
            "\u6771\u4eac\u306bGPU\u304c\u3042\u308b",
            ["\u6771", "\u4eac", "\u306b", "gpu", "\u304c", "\u3042", "\u308b"],
        ),
        ("half \ud83d pair", ["half", "pair"]),
        ("a\x00b\x1fc\x7fd", ["a", "b", "c", "d"]),
        ("", []),
        (" _ \n--- ", []),
    ],
)
def test_plain_words(text: str, expected: list[str]) -> None:
    assert plain_words(text) == expected


@given(
    st.one_of(
        st.text(),
        st.text(st.characters(max_codepoint=0x2030)),
        st.text(alphabet="aB1_ .\n\u2019\u201c\u2014\u00a0\u00e9"),
    )
)
def test_the_short_cuts_change_no_word(text: str) -> None:
    assert plain_words(text) == hashing._PLAIN_WORD.findall(text.lower())


@given(st.text())
def test_case_and_punctuation_make_no_difference(text: str) -> None:
    assert plain_words("\n- ".join(plain_words(text))) == plain_words(text)


def test_known_hashes() -> None:
    # XXH3 of the UTF-8 bytes, seed 0: a changed value would make old indexes and new ones disagree.
    assert hash_words(["", "a", "word"]).tolist() == [
        0x2D06800538D394C2,
        xxhash.xxh3_64_intdigest(b"a"),
        xxhash.xxh3_64_intdigest(b"word"),
    ]
    assert hash_words([]).shape == (0,)
    assert hash_words(["x"]).dtype == np.uint64


def test_half_a_surrogate_pair_has_a_hash() -> None:
    assert hash_words(["\ud83d"]) != hash_words(["\ud83e"])


def test_hashes_are_those_of_another_process() -> None:
    code = (
        "from lit_pretrain.hashing import *; print(hash_ngrams(hash_words(plain_words('One two"
        " three four')), 3).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(
        hash_ngrams(hash_words(plain_words("one, TWO three; four")), 3).tolist()
    )


def test_a_full_cache_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plain_words("a b c d a b c d e f a")
    expected = hash_words(found)
    monkeypatch.setattr(hashing, "_CACHED_WORDS", 2)
    assert (hash_words(found) == expected).all()


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 14))
def test_ngrams_are_hashes_of_runs(found: list[str], n: int) -> None:
    hashes = hash_ngrams(hash_words(found), n).tolist()
    runs = [tuple(found[at : at + n]) for at in range(len(found) - n + 1)]
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))
    for run, value in zip(runs, hashes, strict=True):
        total = 0
        for word in run:
            total = (total * 0x9E3779B97F4A7C15 + xxhash.xxh3_64_intdigest(word.encode())) & MASK
        assert value == splitmix64(total)


def test_order_counts() -> None:
    a, b = hash_words(["x", "y"]), hash_words(["y", "x"])
    assert hash_ngrams(a, 2) != hash_ngrams(b, 2)
    assert plain_words("x_y") == ["x", "y"]
