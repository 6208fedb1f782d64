"""The data order: quotas, epochs and purity, as laws."""

import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.data.order import Order
from lit_pretrain.data.permutation import permutation
from lit_pretrain.data.stretches import SourceBlocks, quotas_of
from lit_pretrain.errors import UserError

chunk_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    sources = [SourceBlocks(f"s{i}", tuple(chunks)) for i, chunks in enumerate(draw(st.lists(chunk_lists, min_size=1, max_size=4)))]
    cycle = draw(st.integers(8, 40))
    weights = {s.name: draw(st.floats(0.2, 1.0)) for s in sources}
    return Order(sources, weights=weights, seed=draw(st.integers(0, 9)), cycle=cycle, shuffle_chunks=draw(st.integers(1, 3)))


@given(orders(), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_every_cycle_holds_exactly_its_quotas(order: Order, k: int) -> None:
    seen = Counter(order(n).source for n in range(k * order.cycle, (k + 1) * order.cycle))
    assert [seen[s] for s in range(len(order.sources))] == list(order.stretches[0].quotas)
    assert sum(order.stretches[0].quotas) == order.cycle


@given(orders())
@settings(max_examples=60, deadline=None)
def test_every_epoch_of_a_source_holds_every_block_once(order: Order) -> None:
    epochs: dict[tuple[int, int], list[int]] = {}
    for n in range(6 * order.cycle):
        sample = order(n)
        epochs.setdefault((sample.source, sample.epoch), []).append(sample.block)
    for (source, epoch), blocks in epochs.items():
        assert len(set(blocks)) == len(blocks)
        total = order.sources[source].blocks
        if (source, epoch + 1) in epochs:  # the next epoch has begun: this one is complete
            assert sorted(blocks) == list(range(total))


@given(orders(), st.lists(st.integers(0, 500), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_the_order_is_pure(order: Order, numbers: list[int]) -> None:
    fresh = pickle.loads(pickle.dumps(order))
    assert [order(n) for n in numbers] == [fresh(n) for n in reversed(numbers)][::-1]


@given(orders(), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_counts_agree_with_enumeration(order: Order, n: int) -> None:
    seen = Counter(order(i).source for i in range(n))
    assert order.counts(n) == tuple(seen[s] for s in range(len(order.sources)))


@given(st.integers(1, 200), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_permutation_is_one(n: int, key: int) -> None:
    assert sorted(permutation(n, key)) == list(range(n))


def test_the_order_outlives_library_versions() -> None:
    """Golden values: a change here breaks the resume of every run that was ever started."""
    order = Order(
        [SourceBlocks("a", (10, 7, 0, 3)), SourceBlocks("b", (100, 50))], weights={"a": 1, "b": 2}, seed=3, cycle=9, shuffle_chunks=2
    )
    assert [tuple(order(n)) for n in (0, 1, 2, 3, 100, 1000)] == [
        (0, 0, 1), (0, 0, 7), (1, 0, 61), (1, 0, 57), (0, 1, 11), (0, 16, 9)
    ]  # fmt: skip
    assert permutation(8, 1, "x").tolist() == [1, 4, 7, 6, 2, 5, 3, 0]


def test_chunks_are_read_one_after_the_other() -> None:
    order = Order([SourceBlocks("a", (5, 5, 5, 5))], seed=1, cycle=4)
    chunks = [order(n).block // 5 for n in range(20)]
    assert [chunks[i] for i in range(0, 20, 5)] == list(dict.fromkeys(chunks))  # no chunk is left and returned to


def test_another_seed_is_another_order() -> None:
    sources = [SourceBlocks("a", (50,))]
    assert [Order(sources, seed=0)(n) for n in range(50)] != [Order(sources, seed=1)(n) for n in range(50)]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(6, 2000))
@settings(max_examples=60, deadline=None)
def test_quotas_are_the_nearest_integers(weights: list[float], cycle: int) -> None:
    quotas = quotas_of(weights, cycle)
    assert sum(quotas) == cycle
    assert all(abs(q - w / sum(weights) * cycle) < 1 + 1e-6 for q, w in zip(quotas, weights, strict=True))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -1.0, "b": 1.0}, "must be finite and not negative"),
        ({"a": float("nan"), "b": 1.0}, "must be finite and not negative"),
        ({"c": 1.0}, "unknown sources"),
        ({"a": 0.0, "b": 0.0}, "every weight"),
        ({"a": 1.0, "b": 1e-9}, "less than one in a cycle"),
        ({"a": 1.0, "empty": 1.0}, "not one complete row"),
    ],
)
def test_bad_weights_are_refused(weights: dict[str, float], message: str) -> None:
    sources = [SourceBlocks("a", (5,)), SourceBlocks("b", (5,)), SourceBlocks("empty", (0,))]
    with pytest.raises(UserError, match=message):
        Order(sources, weights=weights)


def test_no_complete_row_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="no complete row"):
        Order([SourceBlocks("a", (0,))])
