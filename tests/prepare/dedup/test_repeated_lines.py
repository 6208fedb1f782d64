"""Lines: what stood in an earlier document goes, whatever the parts and ranges."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.prepare.dedup.dedup_config import LinesConfig
from lit_pretrain.prepare.dedup.repeated_lines import (
    RepeatedLines,
    find_repeated_lines,
    store_lines,
)
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.words import words


def run(parts: list[list[str]], config: LinesConfig, ranges: int) -> list[str]:
    """The texts without repeated lines, by the three steps."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        begin = 0
        for number, part in enumerate(parts):
            numbered = [(begin + place, Document(text, "")) for place, text in enumerate(part)]
            store_lines(numbered, work / f"lines-{number}", config)
            begin += len(part)
        files = [work / f"lines-{number}" for number in range(len(parts))]
        for number in range(ranges):
            find_repeated_lines(files, number, ranges, work / f"repeated-{number}", config)
        repeated = [
            RepeatedLines([work / f"repeated-{number}" for number in range(ranges)], path)
            for path in files
        ]
        places = [place for place, part in enumerate(parts) for _ in part]
        texts = [text for part in parts for text in part]
        return [
            repeated[place].drop_from(text, n, config)[0]
            for n, (place, text) in enumerate(zip(places, texts, strict=True))
        ]


def expected(texts: list[str], config: LinesConfig) -> list[str]:
    """The same by the definition."""
    holders: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        for line in dict.fromkeys(line.strip() for line in text.split("\n")):
            holders.setdefault(line, []).append(number)
    left = []
    for number, text in enumerate(texts):
        kept = []
        for line in text.split("\n"):
            owners = holders[line.strip()]
            if (
                len(words(line)) < config.min_words
                or len(owners) < config.min_count
                or owners[0] == number
            ):
                kept.append(line)
        left.append("\n".join(kept))
    return left


@given(
    texts=st.lists(
        st.lists(
            st.sampled_from(["a b", "a b c", " a b c", "b c d\t", "", "c d e f"]), max_size=6
        ).map("\n".join),
        max_size=8,
    ),
    cut=st.integers(0, 8),
    ranges=st.integers(1, 4),
    min_words=st.integers(1, 4),
    min_count=st.integers(2, 3),
)
def test_equal_to_the_definition(
    texts: list[str], cut: int, ranges: int, min_words: int, min_count: int
) -> None:
    config = LinesConfig(min_words=min_words, min_count=min_count)
    assert run([texts[:cut], texts[cut:]], config, ranges) == expected(texts, config)


def test_a_notice_stays_once() -> None:
    notice = "All rights reserved by the people who wrote it."
    texts = [
        f"First text.\n{notice}\nIts end.",
        f"Second.\n{notice}",
        f"{notice}\n{notice}",
        "A refrain of five words here.\nA refrain of five words here.",
    ]
    assert run([texts], LinesConfig(), 1) == [texts[0], "Second.", "", texts[3]]
