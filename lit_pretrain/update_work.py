"""Update work: what an optimizer's update of matrices takes, and which device does which part.

An optimizer that needs whole matrices gives each one an owner. It shares them out by the rule
here, and so does the planner.
"""

from collections.abc import Sequence
from typing import NamedTuple


class UpdateWork(NamedTuple):
    """What one device does in an optimizer step for the update of matrices."""

    flops: float
    """Products of the device with most to do."""
    within: float
    """Bytes that a device sends to others of its copy of the network."""
    across: float
    """Bytes that it sends to devices of all copies."""


class Work(NamedTuple):
    """What some device is to do."""

    cost: float
    """FLOPs, or anything in proportion to the time it takes."""
    candidates: Sequence[int]
    """Devices that may do it."""


def assign_owners(works: Sequence[Work], devices: int) -> list[int]:
    """Choose a device for each piece of work: the largest first, to who has least to do so far.

    Where all may do everything, the busiest device has at most a third more to do than with the
    best choice (Graham 1969).

    Args:
        works: What is to be done.
        devices: How many there are.

    Returns:
        The device of each piece of work; the same on every device that asks.
    """
    owners, loads = [0] * len(works), [0.0] * devices
    for number in sorted(range(len(works)), key=lambda number: (-works[number].cost, number)):
        owner = min(works[number].candidates, key=loads.__getitem__)
        owners[number] = owner
        loads[owner] += works[number].cost
    return owners
