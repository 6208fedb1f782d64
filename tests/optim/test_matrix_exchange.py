"""Sharded matrices are stepped as one process steps them, each orthogonalised by one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FLOPS = [4 * a**2 * b + 2 * a**3 for a, b in [(16, 40), (16, 48), (24, 24), (24, 24)]]
"""Of an iteration for each of the first four matrices."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sharded_matrices.py"))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    layouts: dict[str, Any] = json.loads(ran.stdout)
    assert len(layouts) == 6
    return layouts


def test_weights_and_momenta_are_those_of_one_process(found: dict[str, Any]) -> None:
    """Over 20 steps in fp32: tall, wide and square matrices, some with fewer or odd numbers of
    rows, and stacks of several dimensions.
    """
    for layout, one in found.items():
        assert one["apart"] < 1e-5, layout
        assert one["moved"] > 0.03, layout


@pytest.mark.parametrize("layout", ["fsdp", "hsdp", "fsdp x tp", "levelled fsdp"])
def test_one_rank_orthogonalises_a_matrix(found: dict[str, Any], layout: str) -> None:
    """And none has much more to do than the others, of the four large ones one each."""
    owned = found[layout]["owned"]
    for number in range(4):
        assert sum(number in own for own in owned) == 1, number
    assert all(len([number for number in own if number < 4]) == 1 for own in owned)


def test_copies_share_only_what_pays(found: dict[str, Any]) -> None:
    first, second, third, fourth = found["hsdp alone"]["owned"]
    assert (first, second) == (third, fourth)
    loads = [sum(FLOPS[number] for number in own if number < 4) for own in (first, second)]
    assert max(loads) < 1.2 * min(loads)


def test_ranks_that_hold_other_matrices_of_a_stack_keep_them(found: dict[str, Any]) -> None:
    """FSDP divides the six matrices of one stack into 2, 2, 2 and none, the four of another into
    one each.
    """
    owned = found["fsdp"]["owned"]
    assert [6 in own for own in owned] == [True, True, True, False]
    assert [7 in own for own in owned] == [True] * 4


def test_matrices_of_a_stack_that_all_ranks_note_come_together(found: dict[str, Any]) -> None:
    """Levelling keeps the sizes of a whole update on every rank."""
    for number in (6, 7):
        assert sum(number in own for own in found["levelled fsdp"]["owned"]) == 1
