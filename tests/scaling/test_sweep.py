"""Sweep: runs of one budget spend the same, batch and rate follow the rule, and what cannot be
is refused.
"""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.flops import flops_per_token
from lit_pretrain.scaling.sweep import Shared, SweepRule, sweep_runs, warnings

SIZES = {
    f"w{width}": ModelConfig(
        vocab_size=1024, n_layer=2, width=width, n_head=2, tie_embeddings=True, max_seq_len=128
    )
    for width in (16, 32, 64)
}
SHARED = Shared(
    seq_len=128, micro_batch_size=8, devices=1, batch_tokens=2048, lr=3e-3, unique_tokens=1e7
)


@given(
    flops=st.floats(1e12, 1e15),
    devices=st.integers(1, 12),
    micro=st.integers(1, 48),
    rule=st.sampled_from(["deepseek", "step_law", "olmo"]),
)
def test_the_laws_of_a_run(flops: float, devices: int, micro: int, rule: str) -> None:
    shared = dataclasses.replace(SHARED, devices=devices, micro_batch_size=micro)
    runs = sweep_runs([(flops, list(SIZES))], SIZES, shared, SweepRule(rule))
    for run in runs:
        per_step = run.batch_tokens * flops_per_token(run.net, 128).training
        assert abs(run.flops - flops) <= per_step / 2  # the nearest whole number of steps
        assert run.tokens == run.steps * run.batch_tokens
        rows = run.batch_tokens // 128 // devices
        assert run.batch_tokens == rows * 128 * devices
        assert math.log2(rows).is_integer()
        assert run.micro_batch_size <= micro
        assert rows % run.micro_batch_size == 0


def test_batch_and_rate_are_the_rule_s() -> None:
    (run,) = sweep_runs([(1e13, ["w64"])], SIZES, SHARED, SweepRule("step_law", lr_factor=0.5))
    n, d = count_parameters(SIZES["w64"]).total, 1e13 / flops_per_token(SIZES["w64"], 128).training
    assert run.lr == pytest.approx(0.5 * 1.79 * n**-0.713 * d**0.307)
    assert 2**-0.5 <= run.batch_tokens / (0.58 * d**0.571) <= 2**0.5
    assert run.name == "1e13_w64"
    assert run.epochs == pytest.approx(run.tokens / 1e7)
    (kept,) = sweep_runs([(1e13, ["w64"])], SIZES, SHARED, SweepRule("none"))
    assert (kept.lr, kept.batch_tokens, kept.micro_batch_size) == (3e-3, 2048, 8)


def test_budgets_are_in_order_and_sizes_as_named() -> None:
    runs = sweep_runs([(3e12, ["w64", "w32"]), (1e12, ["w16"])], SIZES, SHARED, SweepRule("olmo"))
    assert [run.name for run in runs] == ["1e12_w16", "3e12_w64", "3e12_w32"]


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([(-1.0, ["w16"])], "-1 FLOPs must be positive"),
        ([(math.nan, ["w16"])], "nan FLOPs must be positive"),
        ([(1e12, ["w17"])], "names the size 'w17', which is not among sizes: w16, w32, w64"),
        ([(1e12, ["w16"]), (1e12, ["w16"])], "the run 1e12_w16 is there twice"),
        ([(1e6, ["w64"])], "less than one step of"),
    ],
)
def test_refusals(budgets: list[tuple[float, list[str]]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep_runs(budgets, SIZES, SHARED, SweepRule("step_law"))


def test_what_a_sweep_warns_of() -> None:
    shared = dataclasses.replace(SHARED, unique_tokens=1e5)
    runs = sweep_runs([(1e12, ["w16"])], SIZES, shared, SweepRule("none"))
    (untuned, repeated) = warnings(runs, SweepRule("none"))
    assert "Porian" in untuned
    assert "1 of 1 runs read the data more than once" in repeated
    runs = sweep_runs([(3e10, ["w64"])], SIZES, SHARED, SweepRule("step_law"))
    assert [message[:26] for message in warnings(runs, SweepRule("step_law"))] == [
        "fewer than 100 steps: 3e10"
    ]
