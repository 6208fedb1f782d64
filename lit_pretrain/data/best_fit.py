"""Best fit: rows of different lengths into packs of one size."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def best_fit(lengths: npt.NDArray[np.int64], capacity: int, order: npt.NDArray[np.int64]) -> list[list[int]]:
    """Pack by best-fit decreasing: the longest first, each into the fullest pack that still takes it (Johnson 1973; for training Ding et
    al. 2024, "Fewer Truncations Improve Language Modeling").

    Args:
        lengths: Of the rows, at most `capacity`.
        capacity: Size of a pack.
        order: The rows to pack, each as often as it stands here; among equal lengths the first comes first.

    Returns:
        The packs, each with its rows in the order in which they came in.
    """
    sorted_rows: Sequence[int] = order[np.argsort(-lengths[order], kind="stable")].tolist()
    packs: list[list[int]] = []
    rooms: list[int] = []  # distinct free rooms, rising
    having: dict[int, list[int]] = {}  # free room -> packs, the oldest last
    for row in sorted_rows:
        length = int(lengths[row])
        assert 0 < length <= capacity, f"row {row} has {length} places of {capacity}"
        i = bisect_left(rooms, length)
        if i == len(rooms):
            pack, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[i]
            pack = having[room].pop()
            if not having[room]:
                del having[room], rooms[i]
        packs[pack].append(row)
        room -= length
        if room:
            if room not in having:
                having[room] = []
                insort(rooms, room)
            having[room].append(pack)
    return packs
