"""Mixtures: what a config says becomes weights and sample numbers, and what it contradicts is
refused.
"""

from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.text.mixture import (
    Mixture,
    Phase,
    check_past,
    make_order,
    order_of,
    temperature_weights,
)
from lit_pretrain.data.text.order import Order
from lit_pretrain.data.text.stretches import SourceBlocks
from lit_pretrain.errors import UserError

BATCH = {"seq_len": 32, "global_batch_tokens": 256}


def order(dataset: Path, **data: Any) -> Order:
    return order_of(Manifest.load(dataset), BATCH | data)


def test_temperature_goes_from_the_amount_of_text_to_equal_shares() -> None:
    sources = [
        SourceBlocks("large", (10_000,)),
        SourceBlocks("small", (60, 40)),
        SourceBlocks("empty", (0,)),
    ]
    assert temperature_weights(sources, 1, "t") == {"large": 10_000, "small": 100, "empty": 0}
    assert temperature_weights(sources, 2, "t") == {"large": 100, "small": 10, "empty": 0}
    # XLM-R: p ∝ n^0.3
    third = temperature_weights(sources, 1 / 0.3, "t")
    assert third["large"] / third["small"] == pytest.approx(100**0.3)
    even = temperature_weights(sources, 1e12, "t")
    assert even["large"] == pytest.approx(even["small"])
    assert even["empty"] == 0


def test_temperature_one_is_the_default(dataset: Path) -> None:
    assert order(dataset, temperature=1.0).stretches == order(dataset).stretches


@pytest.mark.parametrize(
    ("tokens", "step"),
    [
        (0, 0),
        (127, 0),
        (128, 1),
        (256, 1),
        (383, 1),
        (384, 2),
        (2_000_000_000, 7_812_500),
        (2_000_000_128.0, 7_812_501),
    ],
)
def test_a_phase_begins_with_the_nearest_step(dataset: Path, tokens: float, step: int) -> None:
    phases = [{"from_tokens": tokens, "weights": {"code": 1}}]
    if step == 0 and tokens:
        with pytest.raises(
            UserError,
            match=(
                rf"data.phases\[0\].from_tokens={tokens} is step 0, but the phase before it begins"
                r" at step 0"
            ),
        ):
            order(dataset, phases=phases)
        return
    found = order(dataset, phases=phases)
    assert (
        found.stretches[-1].begin == step * 8
    )  # rows of a step, however it is divided into micro-batches and ranks
    assert found(step * 8) == (2, found(step * 8).epoch, found(step * 8).block)


def test_phases_of_a_config_and_of_python_are_the_same(dataset: Path) -> None:
    phases = [{"from_tokens": 0, "temperature": 2}, {"from_tokens": 2560, "weights": {"code": 1}}]
    data = {"seed": 3, "cycle": 64, "max_epochs": {"code": 2}, "phases": phases}
    mixture = Mixture(
        max_epochs={"code": 2},
        phases=[Phase(from_tokens=0, temperature=2), Phase(from_tokens=2560, weights={"code": 1})],
    )
    same = make_order(Manifest.load(dataset), mixture, seed=3, cycle=64, shuffle_chunks=1, **BATCH)
    assert order(dataset, **data).stretches == same.stretches
    assert len(same.stretches) == 2
    phases[1]["from_tokens"] = "2.56e3"  # as a YAML file may have it
    assert order(dataset, **data).stretches == same.stretches


def test_weights_hold_until_the_first_phase(dataset: Path) -> None:
    later = {"from_tokens": 2560, "temperature": 4}
    one = order(dataset, weights={"code": 1, "story": 3}, phases=[later])
    two = order(dataset, phases=[{"from_tokens": 0, "weights": {"code": 1, "story": 3}}, later])
    assert one.stretches == two.stretches
    assert one.stretches[0].quotas == (768, 0, 256)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"weights": {"code": 1}, "temperature": 2},
            "data.weights and data.temperature exclude each other",
        ),
        ({"temperature": 0.5}, "data.temperature=0.5 must be finite and at least 1"),
        ({"temperature": float("nan")}, "must be finite and at least 1"),
        (
            {"weights": {"code": 1}, "phases": [{"from_tokens": 0}]},
            "data.weights and data.temperature would hold nowhere",
        ),
        (
            {"phases": [{"from_tokens": 999, "weights": {"cod": 1}}]},
            r"data.phases\[0\].weights names unknown sources \['cod'\]",
        ),
        (
            {"phases": [{"from_tokens": 999, "weights": {"code": 0}}]},
            r"data.phases\[0\].weights leaves nothing to train on",
        ),
        (
            {"phases": [{"from_tokens": 999, "weights": {"code": 1}, "temperature": 2}]},
            "exclude each other",
        ),
        ({"phases": [{"from_tokens": -1}]}, "must be finite and not negative"),
        (
            {"phases": [{"from_tokens": 9999}, {"from_tokens": 999}]},
            r"data.phases\[1\].from_tokens=999 is step 4, but .* step 39",
        ),
        (
            {"phases": [{"from_tokens": 0, "weight": 1}]},
            "a phase has from_tokens, and weights or temperature",
        ),
        ({"phases": [{"from": 0}]}, "a phase has from_tokens, and weights or temperature"),
        ({"max_epochs": {"cod": 1}}, "data.max_epochs names unknown sources"),
        ({"seq_len": 0}, "data.seq_len must be at least 1"),
    ],
)
def test_contradictions_are_refused(dataset: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        order(dataset, **data)


@pytest.mark.parametrize(
    ("run", "fork", "same"),
    [
        ({}, {"phases": [{"from_tokens": 2560, "weights": {"code": 1}}]}, True),
        ({}, {"phases": [{"from_tokens": 2304, "weights": {"code": 1}}]}, False),
        ({"weights": {"code": 1}}, {"weights": {"code": 2}}, True),  # the same shares
        ({"weights": {"code": 1}}, {"weights": {"code": 1, "story": 1}}, False),
        (
            {"weights": {"code": 1}},
            {
                "phases": [
                    {"from_tokens": 0, "weights": {"code": 1}},
                    {"from_tokens": 9e9, "temperature": 2},
                ]
            },
            True,
        ),
        ({"phases": [{"from_tokens": 1024}]}, {}, False),
        ({"phases": [{"from_tokens": 2560}]}, {}, True),  # at step 10 the fork begins
        ({}, {"max_epochs": 1}, True),
        ({"weights": {"code": 1}, "max_epochs": 0.2}, {"weights": {"code": 1}}, True),
        (
            {"weights": {"code": 1, "story": 1}, "max_epochs": {"code": 0.01}},
            {"weights": {"code": 1, "story": 1}},
            False,
        ),  # code has left
    ],
)
def test_a_fork_must_have_read_what_the_run_read(
    dataset: Path, run: dict[str, Any], fork: dict[str, Any], same: bool
) -> None:
    manifest = Manifest.load(dataset)
    if same:
        check_past(manifest, BATCH | run, BATCH | fork, step=10, checkpoint="x")
        assert [order(dataset, **run)(n) for n in range(80)] == [
            order(dataset, **fork)(n) for n in range(80)
        ]
    else:
        with pytest.raises(UserError, match="cannot fork x with this mixture") as caught:
            check_past(manifest, BATCH | run, BATCH | fork, step=10, checkpoint="x")
        assert "data.phases: [{from_tokens: 2560, weights: {...}}]" in str(caught.value)
