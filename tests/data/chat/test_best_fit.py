"""Best fit: every row once, no pack too full, and nearly as few packs as there can be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.data.chat.epochs import best_fit
from lit_pretrain.hashing import permutation


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
