"""The data order: quotas, epochs and purity, as laws."""

import dataclasses
import hashlib
import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.corpus.manifest import Manifest, SourceSplit
from lit_pretrain.data.text.order import Order, chosen_rows, rows_held_out, spread_rows
from lit_pretrain.data.text.stretches import Change, SourceBlocks, limits_of, quotas_of
from lit_pretrain.errors import UserError
from lit_pretrain.hashing import permutation

chunk_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Orders with and without changes of the mixture and caps."""
    sources = [
        SourceBlocks(f"s{i}", tuple(chunks))
        for i, chunks in enumerate(draw(st.lists(chunk_lists, min_size=1, max_size=4)))
    ]

    def weights() -> dict[str, float]:
        drawn = {s.name: draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])) for s in sources}
        return drawn if any(drawn.values()) else {s.name: 1.0 for s in sources}

    begins = sorted(draw(st.sets(st.integers(0, 120), max_size=3)))
    caps = draw(
        st.none()
        | st.floats(1, 6)
        | st.fixed_dictionaries({}, optional={s.name: st.floats(1, 6) for s in sources})
    )
    return Order(
        sources,
        weights=weights(),
        changes=[Change(begin, weights(), "a phase") for begin in begins],
        max_epochs=caps,
        seed=draw(st.integers(0, 9)),
        cycle=draw(st.integers(20, 40)),
        shuffle_chunks=draw(st.integers(1, 3)),
    )


def length(order: Order) -> int:
    return 240 if order.end is None else min(240, order.end)


def digest(order: Order, samples: range) -> str:
    return hashlib.sha256(repr([tuple(map(int, order(n))) for n in samples]).encode()).hexdigest()[
        :16
    ]


@given(orders())
@settings(max_examples=100, deadline=None)
def test_every_cycle_of_a_stretch_holds_exactly_its_quotas(order: Order) -> None:
    ends = [
        *(stretch.begin for stretch in order.stretches[1:]),
        order.end if order.end is not None else order.stretches[-1].begin + 100,
    ]
    cycles = 0
    for stretch, end in zip(order.stretches, ends, strict=True):
        assert sum(stretch.quotas) == order.cycle
        assert stretch.first_cycle == cycles  # no shuffle is used twice
        cycles += -(-(end - stretch.begin) // order.cycle)
        for begin in range(stretch.begin, end - order.cycle + 1, order.cycle):
            seen = Counter(order(n).source for n in range(begin, begin + order.cycle))
            assert [seen[s] for s in range(len(order.sources))] == list(stretch.quotas)


@given(orders())
@settings(max_examples=100, deadline=None)
def test_every_epoch_of_a_source_holds_every_block_once(order: Order) -> None:
    epochs: dict[tuple[int, int], list[int]] = {}
    for n in range(length(order)):
        sample = order(n)
        epochs.setdefault((sample.source, sample.epoch), []).append(sample.block)
    for (source, epoch), blocks in epochs.items():
        assert len(set(blocks)) == len(blocks)
        total = order.sources[source].blocks
        if (source, epoch + 1) in epochs:  # the next epoch has begun: this one is complete
            assert sorted(blocks) == list(range(total))


@given(orders())
@settings(max_examples=60, deadline=None)
def test_a_mixture_decides_when_a_source_is_read_and_never_in_which_order(order: Order) -> None:
    """So neither a phase, nor that another source leaves, disturbs it."""
    read: dict[int, list[tuple[int, int]]] = {}
    for n in range(length(order)):
        sample = order(n)
        read.setdefault(sample.source, []).append((sample.epoch, sample.block))
    for s, blocks in read.items():
        alone = Order([order.sources[s]], seed=order.seed, shuffle_chunks=order.shuffle_chunks)
        assert blocks == [(alone(i).epoch, alone(i).block) for i in range(len(blocks))]


@given(orders(), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_the_order_is_pure(order: Order, places: list[float]) -> None:
    numbers = [int(place * length(order)) for place in places]
    fresh = pickle.loads(pickle.dumps(order))
    assert [order(n) for n in numbers] == [fresh(n) for n in reversed(numbers)][::-1]
    assert [order.counts(n) for n in numbers] == [fresh.counts(n) for n in reversed(numbers)][::-1]


@given(orders(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_counts_agree_with_enumeration(order: Order, place: float) -> None:
    n = int(place * length(order))
    seen = Counter(order(i).source for i in range(n))
    assert order.counts(n) == tuple(seen[s] for s in range(len(order.sources)))


@given(orders())
@settings(max_examples=100, deadline=None)
def test_a_source_leaves_with_the_last_sample_that_it_may_give(order: Order) -> None:
    changes = [change.begin for change in order.changes]
    for number, stretch in enumerate(order.stretches):
        assert all(
            limit is None or read <= limit
            for limit, read in zip(order.limits, stretch.before, strict=True)
        )
        gone = [
            limit is not None and read == limit
            for limit, read in zip(order.limits, stretch.before, strict=True)
        ]
        now = max(i for i, begin in enumerate(changes) if begin <= stretch.begin)
        # The others share its place in proportion, in the phase that holds now.
        assert stretch.quotas == quotas_of(
            [0.0 if g else w for g, w in zip(gone, order.weights[now], strict=True)], order.cycle
        )
        if number and stretch.begin not in changes:
            s = order(stretch.begin - 1).source
            assert gone[s]
            assert order.counts(stretch.begin - 1)[s] == order.limits[s] - 1
    if order.end is None:
        last = [
            w for w, limit in zip(order.weights[-1], order.limits, strict=True) if limit is None
        ]
        assert any(last)  # a source without a cap is left to read
        return
    now = max(i for i, begin in enumerate(changes) if begin <= order.end)
    counts = order.counts(order.end)
    assert all(
        not w or read == limit
        for w, read, limit in zip(order.weights[now], counts, order.limits, strict=True)
    )
    for beyond in (order, lambda n: order.counts(n + 1)):
        with pytest.raises(UserError, match="the order ends after"):
            beyond(order.end)


@given(orders(), st.integers(1, 150), st.booleans())
@settings(max_examples=100, deadline=None)
def test_what_changes_later_leaves_what_was_read(order: Order, n: int, alone: bool) -> None:
    """A fork goes on with another mixture: until then its order is that of the run."""
    n = min(n, length(order))
    caps = {
        s.name: (limit + 0.5) / s.blocks
        for s, limit in zip(order.sources, order.limits, strict=True)
        if limit is not None
    }
    even = {source.name: 1.0 for source in order.sources}
    phase = Change(n, {"s0": 1.0} if alone else even, "a phase")
    shape = {"max_epochs": caps, "cycle": order.cycle, "shuffle_chunks": order.shuffle_chunks}
    later = Order(
        order.sources,
        changes=[*(c for c in order.changes if c.begin < n), phase],
        seed=order.seed,
        **shape,
    )
    assert later.limits == order.limits
    assert later.begins_as(order, n)
    assert [later(i) for i in range(n)] == [order(i) for i in range(n)]
    assert not Order(order.sources, changes=later.changes, seed=order.seed + 1, **shape).begins_as(
        order, n
    )
    sooner = Order(order.sources, weights=even, seed=order.seed, **shape)
    if sooner.begins_as(order, n):
        assert [sooner(i) for i in range(n)] == [order(i) for i in range(n)]


@given(st.integers(1, 200), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_permutation_is_one(n: int, key: int) -> None:
    assert sorted(permutation(n, key)) == list(range(n))


def test_the_order_outlives_library_versions() -> None:
    """Golden values: a change here breaks the resume of every run that was ever started."""
    order = Order(
        [SourceBlocks("a", (10, 7, 0, 3)), SourceBlocks("b", (100, 50))],
        weights={"a": 1, "b": 2},
        seed=3,
        cycle=9,
        shuffle_chunks=2,
    )
    assert [tuple(order(n)) for n in (0, 1, 2, 3, 100, 1000)] == [
        (0, 0, 1), (0, 0, 7), (1, 0, 61), (1, 0, 57), (0, 1, 11), (0, 16, 9)
    ]  # fmt: skip
    assert permutation(8, 1, "x").tolist() == [1, 4, 7, 6, 2, 5, 3, 0]


def test_orders_of_plain_weights_are_those_of_runs_that_exist() -> None:
    """Computed before the mixture could change."""
    sources = [
        SourceBlocks("code", (31, 17, 0, 25)),
        SourceBlocks("prose", (64, 64, 40)),
        SourceBlocks("tests", (7,)),
    ]
    assert digest(Order(sources, seed=0), range(5000)) == "0adb0ced741aa067"
    weights = {"code": 0.5, "prose": 0.3, "tests": 0.2}
    assert (
        digest(Order(sources, weights=weights, seed=11, cycle=64, shuffle_chunks=2), range(5000))
        == "14a6d832ffe04a91"
    )
    far = range(10**9, 10**9 + 500)
    assert (
        digest(Order(sources, weights={"prose": 2}, seed=3, cycle=7, shuffle_chunks=3), far)
        == "1878cf4dfe68c97d"
    )
    assert Order(sources, weights=weights, seed=11, cycle=64).counts(12345) == (6173, 3665, 2507)


def test_a_phase_and_a_cap_by_hand() -> None:
    sources = [SourceBlocks("a", (6,)), SourceBlocks("b", (100,)), SourceBlocks("c", (100,))]
    weights = {"a": 2, "b": 1, "c": 1}
    order = Order(
        sources,
        weights=weights,
        changes=[Change(24, {"a": 9, "c": 1}, "a phase")],
        max_epochs={"a": 1.5, "c": 0.1},
        cycle=4,
    )
    # a may be read 9 times: two in each cycle of 4, so within the fifth. c may be read 10 times.
    assert [stretch.quotas for stretch in order.stretches] == [(2, 1, 1), (0, 2, 2), (0, 0, 4)]
    assert 16 < order.stretches[1].begin <= 20
    assert order(order.stretches[1].begin - 1) == (0, 1, order(order.stretches[1].begin - 1).block)
    assert [order(n).source for n in range(24, order.end)] == [2] * (
        order.end - 24
    )  # a is gone, so that its 9 to 1 is void
    assert order.counts(order.end) == (9, order.counts(24)[1], 10)


def test_chunks_are_read_one_after_the_other() -> None:
    order = Order([SourceBlocks("a", (5, 5, 5, 5))], seed=1, cycle=4)
    chunks = [order(n).block // 5 for n in range(20)]
    assert [chunks[i] for i in range(0, 20, 5)] == list(
        dict.fromkeys(chunks)
    )  # no chunk is left and returned to


def test_another_seed_is_another_order() -> None:
    sources = [SourceBlocks("a", (50,))]
    assert [Order(sources, seed=0)(n) for n in range(50)] != [
        Order(sources, seed=1)(n) for n in range(50)
    ]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(6, 2000))
@settings(max_examples=60, deadline=None)
def test_quotas_are_the_nearest_integers(weights: list[float], cycle: int) -> None:
    quotas = quotas_of(weights, cycle)
    assert sum(quotas) == cycle
    assert all(
        abs(q - w / sum(weights) * cycle) < 1 + 1e-6 for q, w in zip(quotas, weights, strict=True)
    )


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


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        (0.0, "must be finite and above 0, found 0 for 'a'"),
        (float("nan"), "must be finite and above 0"),
        ({"b": -1.0}, "found -1 for 'b'"),
        ({"c": 1.0}, r"data.max_epochs names unknown sources \['c'\]"),
        (0.1, "0.1 epochs of 'a' are less than one of its 5 rows"),
    ],
)
def test_bad_caps_are_refused(caps: float | dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Order(
            [SourceBlocks("a", (5,)), SourceBlocks("b", (5,)), SourceBlocks("empty", (0,))],
            max_epochs=caps,
        )


def test_caps_are_the_numbers_that_were_written() -> None:
    """1.1 × 10 is more than 11 in floats, 0.29 × 100 less than 29."""
    sources = [SourceBlocks("a", (10,)), SourceBlocks("b", (100,)), SourceBlocks("empty", (0,))]
    assert limits_of(sources, {"a": 1.1, "b": 0.29, "empty": 2.0}) == (11, 29, None)
    assert limits_of(sources, 0.33) == (3, 33, None)


def test_no_complete_row_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="no complete row"):
        Order([SourceBlocks("a", (0,))])


def test_fewer_rows_are_some_of_the_same_and_never_the_first_ones_only() -> None:
    some, more = (
        chosen_rows(1000, split="validation", source="a", limit=limit) for limit in (20, 200)
    )
    assert set(some) < set(more)
    assert some == sorted(some)
    assert max(some) > 500 > min(some)
    assert chosen_rows(7, split="test", source="a", limit=None) == list(range(7))
    assert chosen_rows(1000, split="validation", source="b", limit=20) != some


def test_tokens_are_spread_evenly_over_the_sources(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    rows = rows_held_out(manifest, "validation", seq_len=64, location="here")
    for tokens in (64, 64 * 20, 64 * 1000, None):
        read = spread_rows(manifest, "validation", seq_len=64, tokens=tokens, location="here")
        share = max(rows) if tokens is None else max(1, tokens // 64 // 3)
        assert [sum(s == source for s, _ in read) for source in range(3)] == [
            min(n, share) for n in rows
        ]
        assert len(set(read)) == len(read)
        assert all(0 <= row < rows[s] for s, row in read)


def test_text_that_fills_no_row_gives_what_there_is(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    assert rows_held_out(manifest, "validation", seq_len=100_000, location="here") == [1, 1, 1]
    assert spread_rows(manifest, "validation", seq_len=100_000, tokens=64, location="here") == [
        (0, 0),
        (1, 0),
        (2, 0),
    ]


def test_a_split_without_text_is_refused(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    empty = SourceSplit(0, 0, 0, ())
    sources = {
        name: dataclasses.replace(source, splits={**source.splits, "validation": empty})
        for name, source in manifest.sources.items()
    }
    with pytest.raises(
        UserError, match=r"validation split of here holds no text; .*splits\.validation"
    ):
        rows_held_out(
            dataclasses.replace(manifest, sources=sources),
            "validation",
            seq_len=64,
            location="here",
        )
