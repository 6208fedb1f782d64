"""Funnel: tokens of every step, counted where that is possible and near the truth elsewhere,
whatever the order and the parts.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from lit_pretrain.prepare.funnel import (
    BLOCK_BYTES,
    MOST,
    Funnel,
    StepCount,
    block_threshold,
    step_after_removal,
)


def words(rng: random.Random, count: int, longest: int) -> str:
    return " ".join("é" * rng.randint(1, longest) for _ in range(count))


def tokens(text: str) -> int:
    return text.count(" ") + 1


def counted(texts: Sequence[str], below: int = 2**64) -> Funnel:
    funnel = Funnel(["read", "short"], below)
    for text in texts:
        funnel.count_document("read", text, len(text.encode()))
        if len(text) < 3000:
            funnel.count_document("short", text, len(text.encode()))
        else:
            funnel.steps["short"].removed["long"] += 1
    return funnel


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Short documents of long words and long ones of short words: the bytes per token of one
    says nothing of the other.
    """
    rng = random.Random(0)
    return [words(rng, 100, 20) for _ in range(300)] + [words(rng, 5000, 4) for _ in range(30)]


def test_a_step_has_its_own_estimate(texts: list[str]) -> None:
    truth = {
        "read": sum(map(tokens, texts)) + len(texts),
        "short": sum(map(tokens, texts[:300])) + 300,
    }
    read, short = counted(texts).record(tokens, 1, 12345)
    assert (short.tokens, short.tokens_estimated) == (12345, False), "the last is what was stored"
    assert read.tokens_estimated
    assert abs(read.tokens / truth["read"] - 1) < 0.1
    of_the_source = round(read.bytes * truth["short"] / short.bytes)
    assert abs(of_the_source / truth["read"] - 1) > 0.5, "one ratio for all steps would be far off"


def test_a_step_after_which_nothing_changed_is_counted() -> None:
    funnel = counted(["a b c", "d e"])
    read, short = funnel.record(tokens, 1, 7)
    assert (read.tokens, read.tokens_estimated, short.tokens, short.tokens_estimated) == (
        7,
        False,
        7,
        False,
    )
    funnel.steps["short"].changed["cut"] += 1  # rows, not tokens
    assert not funnel.record(tokens, 1, 7)[0].tokens_estimated
    funnel.steps["short"].changed["edited"] += 1
    assert funnel.record(tokens, 1, 7)[0].tokens == 7
    assert funnel.record(tokens, 1, 7)[0].tokens_estimated


def test_neither_order_nor_parts_show(texts: list[str]) -> None:
    whole = counted(texts).record(tokens, 2, 1)
    mixed = random.Random(1).sample(texts, len(texts))
    joined = Funnel([])
    for begin in range(0, len(mixed), 37):
        joined.add(json.loads(json.dumps(counted(mixed[begin : begin + 37]).dump())))
    assert joined.record(tokens, 2, 1) == whole


def test_samples_of_a_large_source_are_bounded(texts: list[str]) -> None:
    size = 1000 * MOST * BLOCK_BYTES
    (read, _) = counted(texts, block_threshold(size)).dump()
    assert len(read["sample"]) < sum(len(text.encode()) // BLOCK_BYTES + 1 for text in texts) / 20
    assert block_threshold(1) == block_threshold(0) == 2**64


def test_a_sample_taken_out_of_another_does_not_show_the_parts(texts: list[str]) -> None:
    """Every third document goes after the step read."""
    found = []
    for size in (len(texts), 50, 1):
        joined = Funnel([])
        for begin in range(0, len(texts), size):
            part = texts[begin : begin + size]
            (read, _) = counted(part).dump()
            gone = {place for place in range(len(part)) if (begin + place) % 3 == 0}
            left = [text for place, text in enumerate(part) if place not in gone]
            joined.add(
                [
                    read,
                    step_after_removal(
                        read,
                        "ids",
                        documents=len(left),
                        size=sum(len(text.encode()) for text in left),
                        gone=gone,
                        removed={"x": len(gone)},
                    ),
                ]
            )
        joined.steps["end"] = StepCount("end", removed=Counter(all=1))
        found.append(joined.record(tokens, 1, 1))
    assert len({tuple((step.tokens, step.documents) for step in steps) for steps in found}) == 1
    left = [text for place, text in enumerate(texts) if place % 3]
    assert abs(found[0][1].tokens / (sum(map(tokens, left)) + len(left)) - 1) < 0.15


def test_documents_taken_out_leave_the_sample() -> None:
    (read, _) = counted(["a b c", "d e f g", "h"]).dump()
    step = step_after_removal(read, "dedup", documents=2, size=6, gone={1}, removed={"exact": 1})
    assert sorted(text for _, text, _ in step["sample"]) == ["a b c", "h"]
    assert (step["name"], step["documents"], step["bytes"], step["removed"]) == (
        "dedup",
        2,
        6,
        {"exact": 1},
    )
