"""Update work: owners have equally much to do, and are candidates."""

import random

import pytest

from lit_pretrain.update_work import Work, assign_owners


@pytest.mark.parametrize("devices", [1, 2, 3, 8, 100])
def test_the_busiest_has_at_most_a_third_more_than_is_possible(devices: int) -> None:
    draw = random.Random(devices)
    costs = [draw.choice([1.0, 3.0, 3.0, 8.0]) for _ in range(40)]
    owners = assign_owners([Work(cost, range(devices)) for cost in costs], devices)
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == d) for d in range(devices)]
    assert max(loads) <= 4 / 3 * max(*costs, sum(costs) / devices)


def test_an_owner_is_a_candidate() -> None:
    works = [Work(1.0, [1, 3]), Work(5.0, [3]), Work(1.0, [0, 1, 2, 3]), Work(2.0, [1, 3])]
    assert assign_owners(works, 4) == [1, 3, 0, 1]
