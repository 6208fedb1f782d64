"""Splits follow the text and nothing else, and their bytes are near their shares."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.prepare_config import SplitsConfig
from lit_pretrain.prepare.stages.hold_out import (
    Chosen,
    Splitter,
    choose_by_bytes,
    close_to_targets,
    target_bytes,
)


def split_of(text: str, seed: int = 0, **fractions: float) -> str:
    splitter = Splitter(SplitsConfig(**fractions), seed)
    return splitter.split(splitter.key(text.encode()))


def test_fractions_are_met() -> None:
    counts = {"train": 0, "validation": 0, "test": 0}
    for n in range(20_000):
        counts[split_of(f"document {n}", validation=0.2, test=0.1)] += 1
    assert abs(counts["validation"] / 20_000 - 0.2) < 0.01  # three standard deviations
    assert abs(counts["test"] / 20_000 - 0.1) < 0.01


@given(text=st.text(max_size=20), seed=st.integers(-5, 5))
def test_text_alone_decides(text: str, seed: int) -> None:
    assert split_of(text, seed, validation=0.3, test=0.3) == split_of(
        text, seed, validation=0.3, test=0.3
    )
    assert split_of(text, seed, validation=0.0, test=0.0) == "train"
    if (
        split_of(text, seed, validation=0.1, test=0.1) == "test"
    ):  # a larger validation split takes from training only
        assert split_of(text, seed, validation=0.5, test=0.1) == "test"


def test_seed_changes_the_split() -> None:
    held_out = [
        {n for n in range(1000) if split_of(str(n), seed, validation=0.1, test=0.0) == "validation"}
        for seed in (0, 1)
    ]
    assert len(held_out[0] & held_out[1]) < 40


def assign(texts: list[str], splits: SplitsConfig, before: Chosen) -> Splitter:
    """What `hold_out` decides for a source."""
    splitter = Splitter(splits, 0)
    keys = [splitter.key(text.encode()) for text in texts]
    sizes = [len(text.encode()) for text in texts]
    held = dict.fromkeys(("train", "validation", "test"), 0)
    for key, size in zip(keys, sizes, strict=True):
        held[splitter.split(key)] += size
    if close_to_targets(held, target_bytes(sum(sizes), splits)):
        return Splitter(splits, 0, before)
    found, _ = choose_by_bytes(
        np.array(keys, np.uint64), np.array(sizes, np.uint64), splits, before
    )
    return Splitter(splits, 0, {**before, **found})


def pieces(splitter: Splitter, text: str) -> list[tuple[str, str]]:
    return [(split, piece.text) for _, split, piece in splitter.pieces(Document(text, "a"))]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([50, 300, 3_000, 40_000]), min_size=1, max_size=60),
    copies=st.integers(0, 3),
    validation=st.sampled_from([0.0, 0.01, 0.05, 0.3]),
    test=st.sampled_from([0.0, 0.005, 0.2]),
    shuffle=st.randoms(),
)
def test_bytes_decide_where_the_hash_does_not(
    sizes: list[int], copies: int, validation: float, test: float, shuffle: random.Random
) -> None:
    splits = SplitsConfig(validation=validation, test=test)
    texts = [f"Text {n} é:\n" + f"line {n}é of it\n" * (size // 16) for n, size in enumerate(sizes)]
    texts += texts[:copies]
    splitter = assign(texts, splits, {})
    held = dict.fromkeys(("train", "validation", "test"), 0)
    for text in texts:
        found = pieces(splitter, text)
        assert "".join(piece for _, piece in found) == text, "nothing is lost, nothing is twice"
        assert len({split for split, _ in found}) == len(found)
        for split, piece in found:
            held[split] += len(piece.encode())
    for split, share in target_bytes(sum(held.values()), splits).items():
        if (
            share >= 2_000
        ):  # within a smaller one, the copies of a document and the lines are coarse
            assert share / 4 <= held[split] <= 4 * share, (split, held)
        if not share:
            assert not held[split]
    if sum(held.values()) > 1000:
        assert held["train"]
    other = shuffle.sample(texts, len(texts))
    assert [pieces(assign(other, splits, {}), text) for text in texts] == [
        pieces(splitter, text) for text in texts
    ]


def test_a_copy_in_another_source_goes_with_it() -> None:
    splits = SplitsConfig(validation=0.05, test=0.0)
    book = "A line of the book.\n" * 1000
    first = assign([book], splits, {})
    assert [split for split, _ in pieces(first, book)] == ["train", "validation"]
    others = [f"Another text {n}. " * 100 for n in range(100)]
    second = assign([book, *others], splits, first._chosen)
    assert pieces(second, book) == pieces(first, book)


def test_many_documents_stay_with_their_hash() -> None:
    texts = [f"Document {n}. " * 20 for n in range(2000)]
    splits = SplitsConfig(validation=0.02, test=0.01)
    splitter = assign(texts, splits, {})
    assert [pieces(splitter, text) for text in texts] == [
        [(split_of(text, validation=0.02, test=0.01), text)] for text in texts
    ]
