"""Schedules as laws: bounds, continuity, exact ends, and tokens that agree with steps."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError
from lit_pretrain.optim import Schedule, span_to_steps

TOKENS = 4096
BATCH = BatchSizes.one(TOKENS)


@given(
    kind=st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    total=st.integers(20, 400),
    warmup=st.integers(0, 8),
    decay=st.integers(1, 10),
    final=st.floats(0.0, 1.0),
    shape=st.sampled_from(["linear", "1-sqrt", "cosine"]),
)
def test_factors_lie_between_zero_and_one_and_end_where_they_should(
    kind: str, total: int, warmup: int, decay: int, final: float, shape: str
) -> None:
    schedule = Schedule(
        kind=kind, warmup=f"{warmup} steps", decay=f"{decay} steps", final=final, shape=shape
    )
    factors = [schedule.factor(step, total, BATCH) for step in range(total + 1)]
    assert all(-1e-12 <= f <= 1 + 1e-12 for f in factors)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(factors[:warmup]))
    end = 1.0 if kind == "constant" else final
    assert factors[total] == pytest.approx(end, abs=1e-9)


@given(total=st.integers(50, 300), steps=st.integers(1, 30))
def test_spans_in_tokens_and_in_steps_agree(total: int, steps: int) -> None:
    in_tokens = Schedule(kind="wsd", warmup=f"{steps * TOKENS} tokens", decay="10 steps")
    in_steps = Schedule(kind="wsd", warmup=f"{steps} steps", decay=f"{10 * TOKENS} tokens")
    assert [in_tokens.factor(s, total, BATCH) for s in range(total)] == [
        in_steps.factor(s, total, BATCH) for s in range(total)
    ]


@given(total=st.integers(40, 200), start=st.integers(5, 30))
def test_a_decay_fork_continues_the_stable_phase(total: int, start: int) -> None:
    assume(start < total)
    stable = Schedule(kind="wsd", warmup="5 steps", decay="1 steps")
    fork = Schedule(
        kind="wsd", warmup="5 steps", decay=f"{total - start} steps", decay_start=f"{start} steps"
    )
    for step in range(start):
        assert fork.factor(step, total, BATCH) == stable.factor(step, 10 * total, BATCH)
    assert fork.factor(total, total, BATCH) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("span", "steps"),
    [
        ("0", 0),
        ("100 steps", 100),
        ("1 step", 1),
        ("4096 tokens", 1),
        ("0.4096M tokens", 100),
        ("2%", 20),
        ("50%", 500),
    ],
)
def test_spans(span: str, steps: int) -> None:
    assert span_to_steps(span, 1000, BATCH) == steps


@pytest.mark.parametrize("span", ["ten steps", "5 apples", "-3 steps", "7", "", "%"])
def test_bad_spans_are_refused(span: str) -> None:
    with pytest.raises(UserError):
        span_to_steps(span, 1000, BATCH)


def test_a_warm_up_and_decay_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError):
        Schedule(kind="wsd", warmup="80 steps", decay="80 steps").factor(0, 100, BATCH)


@given(
    sizes=st.lists(st.integers(1, 9).map(lambda n: 64 * n), min_size=1, max_size=4),
    steps=st.integers(1, 12),
    warmup=st.integers(1, 600),
    decay=st.integers(1, 600),
    kind=st.sampled_from(["wsd", "cosine", "linear"]),
)
def test_rates_move_with_the_tokens_of_steps_of_several_sizes(
    sizes: list[int], steps: int, warmup: int, decay: int, kind: str
) -> None:
    """They are those of a run whose every step has the greatest common divisor of the sizes, at the
    place where the step begins.
    """
    batch = BatchSizes(tuple(i * steps for i in range(len(sizes))), tuple(sizes))
    total = steps * len(sizes) + 5
    ends = [batch.first(n) for n in range(total + 1)]
    assume(ends[-1] >= 2 * 600)
    begin = min(range(total + 1), key=lambda n: abs(ends[n] - warmup)) or 1
    start = min(range(total), key=lambda n: abs(ends[-1] - decay - ends[n]))
    assume(begin <= start and (ends[begin] + ends[-1] - ends[start]) < ends[-1])
    schedule = Schedule(kind=kind, warmup=f"{warmup} tokens", decay=f"{decay} tokens", final=0.1)
    fine = Schedule(
        kind=kind, warmup=f"{ends[begin]} tokens", decay=f"{ends[-1] - ends[start]} tokens",
        final=0.1,
    )  # fmt: skip
    unit, found = BatchSizes.one(batch.unit), schedule.in_steps(total, batch)
    for step in range(begin, total + 1):
        same = fine.factor(ends[step] // batch.unit, ends[-1] // batch.unit, unit)
        nearest = min(abs(ends[-1] - decay - end) for end in ends[:-1])
        ties = sum(abs(ends[-1] - decay - end) == nearest for end in ends[:-1])
        if kind != "wsd" or ties == 1:
            assert found(step) == same
    assert found(begin - 1) == 1.0
    assert found(total) == 0.1


def test_a_share_of_the_run_is_one_of_its_tokens() -> None:
    batch = BatchSizes((0, 10), (100, 300))  # 4,000 tokens in 20 steps
    assert span_to_steps("25%", 20, batch) == 10
    assert span_to_steps("30%", 20, batch, ends=True) == 4
    assert span_to_steps("1000 tokens", 20, batch) == 10
    assert span_to_steps("450 tokens", 20, batch, ends=True) == 2  # a half is a step more
    assert span_to_steps("5 steps", 20, batch, ends=True) == 5
    assert span_to_steps("1 tokens", 20, batch, ends=True) == 1
    with pytest.raises(UserError, match="must start between"):
        Schedule(kind="wsd", decay="9000 tokens").in_steps(20, batch)
