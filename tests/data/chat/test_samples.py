"""Epochs: every row as often as its weight says, packed nearly as densely as there can be."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.data.chat.samples import Epochs, SourceRows, best_fit
from lit_pretrain.hashing import permutation


def source(name: str, *lengths: int, weight: float = 1.0) -> SourceRows:
    return SourceRows(name, np.array(lengths), weight)


def rows_of(order: Epochs, epoch: int) -> Counter[tuple[int, int]]:
    packs = [order(n) for n in range(order.first(epoch), order.first(epoch + 1))]
    assert all(pack.epoch == epoch for pack in packs)
    return Counter((pack.source, row) for pack in packs for row in pack.rows)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=40),
    st.lists(st.integers(1, 16), max_size=20),
    st.sampled_from([None, 16]),
    st.integers(0, 3),
)
def test_an_epoch_is_every_row_once(
    a: list[int], b: list[int], capacity: int | None, seed: int
) -> None:
    order = Epochs([source("a", *a), source("b", *b)], capacity=capacity, seed=seed)
    wanted = {(0, i): 1 for i in range(len(a))} | {(1, i): 1 for i in range(len(b))}
    for epoch in range(3):
        assert rows_of(order, epoch) == wanted


def test_epochs_are_shuffled_anew_and_packs_keep_to_their_source() -> None:
    lengths = [int(n) for n in np.arange(60) % 7 + 1]
    order = Epochs([source("a", *lengths), source("b", *lengths)], capacity=16, seed=1)
    epochs = [[order(n) for n in range(order.first(e), order.first(e + 1))] for e in range(2)]
    assert [p.rows for p in epochs[0]] != [p.rows for p in epochs[1]]
    assert {p.source for p in epochs[0]} == {0, 1}
    other = Epochs([source("a", *lengths), source("b", *lengths)], capacity=16, seed=2)
    assert [order(n) for n in range(20)] != [other(n) for n in range(20)]


def test_a_sample_does_not_depend_on_what_was_asked_before() -> None:
    sources = [source("a", *range(1, 15), weight=0.7), source("b", 3, 4, 5, weight=2.5)]
    forward = [Epochs(sources, capacity=16, seed=3)(n) for n in range(60)]
    backward = Epochs(sources, capacity=16, seed=3)
    assert [backward(n) for n in reversed(range(60))] == forward[::-1]
    assert [pickle.loads(pickle.dumps(backward))(n) for n in range(60)] == forward


@pytest.mark.parametrize("weight", [0.25, 1.0, 1.5, 2.0, 0.3])
def test_a_weight_is_how_often_an_epoch_takes_each_row(weight: float) -> None:
    order = Epochs([source("a", *[1] * 20, weight=weight)], capacity=None, seed=0)
    total: Counter[tuple[int, int]] = Counter()
    for epoch in range(20):
        taken = rows_of(order, epoch)
        assert abs(sum(taken.values()) - 20 * weight) < 1
        assert max(taken.values(), default=0) <= np.ceil(weight) + (weight % 1 > 0)
        total += taken
    assert set(total.values()) == {round(20 * weight)}


def test_in_epochs_counts_parts() -> None:
    order = Epochs([source("a", *[1] * 10)], capacity=None, seed=0)
    assert [order.in_epochs(n) for n in (0, 5, 10, 25)] == [0.0, 0.5, 1.0, 2.5]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(0, 5))
def test_packs_hold_every_row_once_within_their_capacity(lengths: list[int], seed: int) -> None:
    array = np.array(lengths)
    packs = best_fit(array, 64, permutation(len(lengths), seed))
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(array[pack].sum() <= 64 for pack in packs)
    # Best fit decreasing takes at most 11/9 of the fewest packs, and one more (Johnson 1973).
    assert len(packs) <= 11 / 9 * -(-sum(lengths) // 64) + 1 + sum(
        length > 32 for length in lengths
    )
    assert len(packs) == len(
        best_fit(array, 64, permutation(len(lengths), seed + 1))
    )  # the order decides ties alone


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_it_is_the_plain_algorithm(lengths: list[int]) -> None:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(20 - length)
    packs = best_fit(np.array(lengths), 20, np.arange(len(lengths)))
    assert sorted(20 - sum(lengths[row] for row in pack) for pack in packs) == sorted(rooms)


def test_an_example() -> None:
    assert best_fit(np.array([5, 3, 2, 6, 4]), 10, np.arange(5)) == [[3, 4], [0, 1, 2]]
