"""Batch sizes: their arithmetic equals that of a list of steps, and they cut the rows of a run with
one size of the batch into other steps.
"""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.batch_sizes import BatchSizes, ScheduledBatch
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.batches import StepSampler
from lit_pretrain.data.text.mixture import order_of
from lit_pretrain.errors import UserError
from lit_pretrain.skips import Skips

SPANS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4)
"""Steps and size of each part of a schedule; the last one has no end."""
RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=4
)


def laid(spans: Sequence[tuple[int, int]], skips: Skips = Skips()) -> BatchSizes:
    begins = [0, *itertools.accumulate(steps for steps, _ in spans[:-1])]
    return BatchSizes(tuple(begins), tuple(size for _, size in spans), skips)


def listed(spans: Sequence[tuple[int, int]], places: int) -> list[int]:
    """The size of every place, one after the other."""
    whole = [size for steps, size in spans[:-1] for _ in range(steps)]
    return (whole + [spans[-1][1]] * places)[:places]


@given(SPANS, RANGES, st.integers(0, 60), st.integers(0, 300))
def test_it_is_a_list_of_steps(
    spans: list[tuple[int, int]], ranges: list[tuple[int, int]], step: int, amount: int
) -> None:
    skips = Skips.of(ranges)
    batch, places = laid(spans, skips), listed(spans, 800)
    kept = [size for place, size in enumerate(places) if not skips.holds(place)]
    assert batch.size(step) == kept[step]
    assert batch.first(step) == sum(kept[:step])
    assert batch.whole(amount) == max(n for n in range(400) if sum(kept[:n]) <= amount)
    begins = [0, *itertools.accumulate(places)]
    gone = {n for p in range(len(places)) if skips.holds(p) for n in range(*begins[p : p + 2])}
    assert batch.left_out == Skips.of((n, n + 1) for n in gone)
    assert batch.planned.first(step) == begins[step]
    assert batch.until(step) == begins[step]
    assert batch.planned.steps(amount) == min(n for n in range(400) if begins[n] >= amount)
    assert batch.planned.steps(amount + 0.5) == min(n for n in range(400) if begins[n] > amount)
    assert batch.at(begins[step]) == step
    assert begins[int(batch.at(amount))] <= amount < begins[int(batch.at(amount)) + 1]


@given(SPANS, st.integers(0, 900).map(lambda n: Fraction(n, 3)), st.booleans())
def test_the_nearest_step_to_an_amount(
    spans: list[tuple[int, int]], amount: Fraction, later: bool
) -> None:
    begins = [0, *itertools.accumulate(listed(spans, 400))]
    order = enumerate(begins) if not later else reversed(list(enumerate(begins)))
    nearest = min(order, key=lambda step: abs(step[1] - amount))[0]
    assert laid(spans).nearest(amount, later=later) == nearest


@given(SPANS, SPANS, st.integers(0, 40))
def test_whether_two_begin_alike(
    spans: list[tuple[int, int]], others: list[tuple[int, int]], places: int
) -> None:
    one, two = (scheduled_in(s, unit=1) for s in (spans, others))
    same = listed(spans, places) == listed(others, places)
    assert one.begins_as(two, places) is same


def scheduled_in(spans: Sequence[tuple[int, int]], *, unit: int) -> BatchSizes:
    """A schedule whose entries begin where a step does, as a config gives it."""
    batch = laid(spans)
    return BatchSizes.scheduled(
        [
            ScheduledBatch(from_tokens=batch.until(begin) * unit, tokens=size * unit)
            for begin, size in zip(batch.begins, batch.sizes, strict=True)
        ]
    )


@given(SPANS)
def test_the_settings_say_the_same_in_the_fewest_words(spans: list[tuple[int, int]]) -> None:
    batch = scheduled_in(spans, unit=8)
    assert all(a != b for a, b in itertools.pairwise(batch.sizes))
    assert BatchSizes.of(batch.settings) == batch
    assert listed(spans, 60) == [batch.size(n) // 8 for n in range(60)]
    if len({size for _, size in spans}) == 1:
        assert batch == BatchSizes.one(8 * spans[0][1])


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 40)), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_sizes_begin_at_the_nearest_step_of_the_one_before(
    gaps: list[tuple[int, int]], first: int
) -> None:
    entries, tokens, step, size = [ScheduledBatch(from_tokens=0, tokens=first)], 0, 0, first
    begins = [0]
    for gap, tokens_of_next in gaps:
        begin = tokens + gap
        more = (2 * gap + size) // (2 * size)  # a half goes up
        entries.append(ScheduledBatch(from_tokens=begin, tokens=tokens_of_next))
        if more == 0:
            with pytest.raises(
                UserError, match=rf"\[{len(begins)}\].from_tokens={begin:,} is step"
            ):
                BatchSizes.scheduled(entries)
            return
        step, tokens, size = step + more, tokens + more * size, tokens_of_next
        begins.append(step)
    batch = BatchSizes.scheduled(entries)
    for begin, entry in zip(begins, entries, strict=True):
        assert batch.size(begin) == entry.tokens
    assert batch.until(step) == tokens


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"batch_schedule": []}, r"data\.batch_schedule is empty"),
        ({"batch_schedule": [(7, 8)]}, r"batch_schedule\[0\]\.from_tokens=7 must be 0"),
        ({"batch_schedule": [(0, 0)]}, r"batch_schedule\[0\]\.tokens=0 must be at least 1"),
        ({"batch_schedule": [(0, 8), (-1, 8)]}, r"\[1\]\.from_tokens=-1 must be finite"),
        ({"batch_schedule": [(0, 8), (float("nan"), 8)]}, r"\[1\]\.from_tokens=nan must be finite"),
        ({"batch_schedule": [(0, 8), (80, 9), (80, 8)]}, r"\[2\]\.from_tokens=80 is step 10, but"),
        ({"batch_schedule": [(0, 8), (3, 9)]}, r"the next may begin at token 8"),
        ({"batch_schedule": [(0, 8.5)]}, r"8\.5 is no whole number; an entry has from_tokens"),
        ({"batch_schedule": [(0, "many")]}, r"batch_schedule\[0\].*an entry has from_tokens"),
        ({"batch_schedule": [{"tokens": 8}]}, r"batch_schedule\[0\].*an entry has from_tokens"),
        ({"batch_schedule": [8]}, r"batch_schedule\[0\].*an entry has from_tokens"),
        ({"batch_schedule": [(0, 8)], "global_batch_tokens": 8}, "not both"),
        ({"global_batch_tokens": 0}, r"data\.global_batch_tokens=0 must be at least 1"),
    ],
)
def test_what_is_no_schedule_is_refused(data: dict[str, Any], says: str) -> None:
    entries = data.get("batch_schedule")
    if entries is not None:
        names = ("from_tokens", "tokens")
        data["batch_schedule"] = [
            dict(zip(names, e, strict=True)) if isinstance(e, tuple) else e for e in entries
        ]
    with pytest.raises(UserError, match=says):
        BatchSizes.of(data)


# ---------------------------------------------------------------------- the rows of steps


@given(
    spans=SPANS,
    ranges=RANGES,
    phase=st.integers(3, 2000),
    cap=st.sampled_from([None, 0.05, {"code": 0.02}]),
    first=st.integers(0, 30),
    world=st.sampled_from([1, 2]),
)
@settings(max_examples=20)
def test_steps_read_the_rows_of_one_size_in_the_same_order(
    dataset: Path,
    spans: list[tuple[int, int]],
    ranges: list[tuple[int, int]],
    phase: int,
    cap: Any,
    first: int,
    world: int,
) -> None:
    """With phases, caps of epochs and steps that are left out; from any step on, over ranks."""
    manifest, skips = Manifest.load(dataset), Skips.of(ranges)
    batch = scheduled_in(spans, unit=64)
    mixture: dict[str, Any] = {
        "seq_len": 32, "max_epochs": cap, "weights": {"story": 1, "code": 2, "sums": 1},
        "phases": [{"from_tokens": 64 * phase, "weights": {"story": 1, "code": 1}}],
    }  # fmt: skip
    whole = order_of(manifest, mixture | {"global_batch_tokens": batch.unit})
    order = order_of(manifest, mixture | batch.settings, skips)
    rows = BatchSizes(batch.begins, batch.sizes, skips).over(32)
    ranks = [
        StepSampler(batch=rows, rank=r, world_size=world, first_step=first, samples=order.end)
        for r in range(world)
    ]
    read = 0
    for step, parts in enumerate(zip(*ranks, strict=True), start=first):
        place = skips.place(step)
        begin, count = batch.over(32).until(place), batch.size(place) // 32
        numbers = [n for part in parts for n in part]
        assert [order(n) for n in numbers] == [whole(n) for n in range(begin, begin + count)]
        assert numbers == list(range(rows.first(step), rows.first(step + 1)))
        read += 1
        if read == 25:
            return
    # The order has ended: one step more would have gone beyond it.
    assert order.end is not None
    assert rows.first(first + read + 1) > order.end
