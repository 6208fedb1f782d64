"""Spans: a partition of every document, whatever the tokenizers, and sums that lose nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.compare.spans import (
    KINDS,
    OTHER,
    PLACES,
    REPEATS,
    TICK,
    VIEWS,
    document_spans,
    in_nats,
    span_ticks,
)


def ends_of(pieces: list[str]) -> np.ndarray:
    return np.cumsum([len(piece.encode()) for piece in pieces])


def test_kinds_go_by_the_first_letter_and_what_stands_before_it() -> None:
    pieces = ["The", " own", "er", " of", " ", " 12", "3", " x", "9", "_", "é", "\n\n", "!"]
    spans = document_spans("".join(pieces), [ends_of(pieces)], whole=True)
    first, later = "first piece of a word", "later piece of a word"
    space, digits, marks = "white space", "digits", "punctuation and symbols"
    assert [KINDS[k] for k in spans.classes[0]] == [
        first, first, later, first, space, digits, digits, first, digits, marks, first, space,
        marks, "end of the document",
    ]  # fmt: skip


def test_repetition_knows_pairs_and_single_spans() -> None:
    pieces = ["a", "b", "c", "a", "b", "b"]
    spans = document_spans("abcabb", [ends_of(pieces)], whole=False)
    assert [REPEATS[k] for k in spans.classes[2]] == [
        *["new in the document"] * 3, "span seen before", "pair of spans seen before",
        "span seen before",
    ]  # fmt: skip


def test_places_are_bytes() -> None:
    spans = document_spans("x" * 300, [np.arange(1, 301)], whole=False)
    assert np.bincount(spans.classes[1]).tolist() == [64, 192, 44]
    assert PLACES[:3] == (0, 64, 256)


def test_several_tokenizers_meet_where_all_of_them_cut() -> None:
    one, other = ["ab", "c", "def"], ["a", "bc", "d", "ef"]
    ends = [ends_of(one), ends_of(other)]
    spans = document_spans("abcdef", ends, whole=True)
    assert spans.cuts.tolist() == [3, 6, 6]
    nats = np.array([1.0, 2.0, 4.0, 8.0], dtype=np.float32)
    assert (span_ticks(spans, nats, ends[0]) * TICK).tolist() == [3.0, 4.0, 8.0]
    nats = np.array([1.0, 2.0, 4.0, 8.0, 16.0], dtype=np.float32)
    assert (span_ticks(spans, nats, ends[1]) * TICK).tolist() == [3.0, 12.0, 16.0]


def test_text_that_a_tokenizer_changes_is_a_class_of_its_own() -> None:
    spans = document_spans("abc", [np.array([1, 3]), np.array([1, 4])], whole=True)
    for view, classes in zip(VIEWS, spans.classes, strict=True):
        assert {view.classes[k] for k in classes} == {OTHER}
    nats = np.array([1.0, 2.0, 4.0], dtype=np.float32)
    assert (span_ticks(spans, nats, np.array([1, 4])) * TICK).tolist() == [3.0, 4.0]


@settings(max_examples=40)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(0, 1), min_size=80, max_size=80), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_spans_lose_no_nat(text: str, cuts: list[list[int]], whole: bool, seed: int) -> None:
    size = len(text.encode())
    ends = [np.array([i for i in range(1, size) if cut[i]] + [size]) for cut in cuts]
    spans = document_spans(text, ends, whole=whole)
    generator = np.random.default_rng(seed)
    for each in ends:
        nats = generator.exponential(3.0, len(each) + whole).astype(np.float32)
        ticks = span_ticks(spans, nats, each)
        exact = np.rint(nats.astype(np.float64) / TICK).astype(np.int64)
        assert ticks.sum() == exact.sum()
        for view, classes in zip(VIEWS, spans.classes, strict=True):
            assert len(classes) == len(ticks)
            assert classes.max() < len(view.classes)
            parts = [in_nats(int(ticks[classes == c].sum())) for c in range(len(view.classes))]
            assert sum(parts) == in_nats(int(ticks.sum()))
