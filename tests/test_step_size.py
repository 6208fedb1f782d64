"""StepSize: every division gives the step again, and what a refusal proposes is not refused."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.step_size import Division, StepSize

steps = st.builds(
    StepSize,
    st.integers(1, 4000),
    st.one_of(st.none(), st.integers(1, 64)),
    st.sampled_from(["rows", "pairs"]),
)


@given(step=steps, devices=st.integers(1, 16), micro=st.integers(1, 16), fixed=st.booleans())
def test_a_step_divides_or_is_refused_with_what_does(
    step: StepSize,
    devices: int,
    micro: int,
    fixed: bool,
) -> None:
    try:
        division = step.divide(devices, micro, fixed=fixed)
    except UserError as error:
        one = (step.tokens_per_row or 1) * (micro if fixed else 1)
        assert step.total % (one * devices)
        found = re.search(r"the nearest is (\d+)(?:, or take (.*) devices? \(|$)", str(error))
        assert found is not None
        nearest = StepSize(int(found[1]), step.tokens_per_row)
        nearest.divide(devices, micro, fixed=fixed)
        unit = one * devices
        assert nearest.total == unit or abs(nearest.total - step.total) <= unit / 2
        assert (found[2] is None) == bool(step.total % one or devices == 1)
        for number in map(int, (found[2] or "").split(" or ") if found[2] else ()):
            assert step.divide(number, micro, fixed=fixed).devices == number
        return
    rows = step.total // (step.tokens_per_row or 1)
    assert math.prod(division) == rows == step.rows
    larger = range(division.micro_batch_size + 1, micro + 1)
    assert division.micro_batch_size <= micro
    assert not any(rows // devices % size == 0 for size in larger)
    assert (step.lowered(division, micro) is None) == (division.micro_batch_size == micro)
    if fixed:
        assert division.micro_batch_size == micro


def test_one_device_takes_the_micro_batch_that_divides() -> None:
    assert StepSize(4096, 512).divide(1, 8) == Division(1, 8, 1)
    assert StepSize(8192, 512).divide(1, 4) == Division(1, 4, 4)
    assert StepSize(4096, 512).divide(2, 8) == Division(2, 4, 1)


@pytest.mark.parametrize(
    ("step", "devices", "asked", "says"),
    [
        (
            StepSize(4096, 512), 2, 8,
            "data.micro_batch_size lowered from 8 to 4: "
            "a step of 8 rows leaves 4 to each of 2 devices",
        ),
        (
            StepSize(12, unit="pairs"), 2, 4,
            "data.micro_batch_size lowered from 4 to 3: "
            "a step of 12 pairs leaves 6 to each of 2 devices; "
            "data.global_batch_rows=16 would keep 4",
        ),
        (StepSize(4), 1, 8, "data.micro_batch_size lowered from 8 to 4: a step of 4 rows"),
        (StepSize(4096, 512), 4, 2, None),
    ],
)  # fmt: skip
def test_a_lowered_micro_batch_is_explained(
    step: StepSize,
    devices: int,
    asked: int,
    says: str | None,
) -> None:
    assert step.lowered(step.divide(devices, asked), asked) == says


@pytest.mark.parametrize(
    ("step", "devices", "fixed", "says"),
    [
        (
            StepSize(4096, 512), 16, False,
            "data.global_batch_tokens=4096 must be a multiple of devices × data.seq_len = "
            "16 × 512 = 8192; the nearest is 8192, "
            "or take 8 devices (trainer.devices × trainer.num_nodes)",
        ),
        (
            StepSize(32), 3, False,
            "data.global_batch_rows=32 must be a multiple of devices = 3; "
            "the nearest is 33, or take 2 or 4 devices (trainer.devices × trainer.num_nodes)",
        ),
        (
            StepSize(8, unit="answers"), 4, True,
            "data.global_batch_rows=8 must be a multiple of devices × data.micro_batch_size = "
            "4 × 4 = 16; the nearest is 16, "
            "or take 2 devices (trainer.devices × trainer.num_nodes)",
        ),
        (
            StepSize(300, 32), 1, False,
            "data.global_batch_tokens=300 must be a multiple of data.seq_len = 32; "
            "the nearest is 288",
        ),
    ],
)  # fmt: skip
def test_a_refusal_shows_the_arithmetic(
    step: StepSize,
    devices: int,
    fixed: bool,
    says: str,
) -> None:
    with pytest.raises(UserError) as caught:
        step.divide(devices, 4, fixed=fixed)
    assert str(caught.value) == says


def test_a_division_reads_as_a_product() -> None:
    assert Division(1, 8, 1).text("rows", 512) == "1 device × 8 rows × 512 tokens"
    assert Division(2, 1, 4).text("pairs") == "2 devices × 1 pair × 4 micro-batches"
