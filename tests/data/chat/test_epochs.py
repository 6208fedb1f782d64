"""Epochs: every row as often as its weight says, in an order that is a function of the seed and
the sample number.
"""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.data.chat.epochs import Epochs, SourceRows


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
