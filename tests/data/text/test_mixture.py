"""Mixtures: settings become weights, contradictions are refused, runs are tabulated."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.text.mixture import (
    Mixture,
    Phase,
    check_length,
    check_past,
    exposure,
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
    same = make_order(
        Manifest.load(dataset), mixture, seq_len=32, batch=BatchSizes.one(256), seed=3, cycle=64,
        shuffle_chunks=1,
    )  # fmt: skip
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


ROWS: dict[str, Any] = {"batch": BatchSizes.one(8), "seq_len": 32}


def table(dataset: Path, steps: int, **data: Any) -> list[str]:
    manifest = Manifest.load(dataset)
    order = order_of(manifest, {"seq_len": 32, "global_batch_tokens": 256} | data)
    return exposure(order, manifest, samples=8 * steps, seq_len=32).splitlines()


def test_the_figures_are_those_of_the_order(dataset: Path) -> None:
    data = {
        "weights": {"story": 1, "code": 3},
        "phases": [{"from_tokens": 25_600, "weights": {"sums": 1, "code": 1}}],
    }
    title, head, *rows = table(dataset, 300, **data)
    assert title == "mixture over 76,800 tokens:"
    assert head.split() == ["source", "tokens", "from", "0", "from", "25,600", "share", "epochs"]
    order = order_of(Manifest.load(dataset), {"seq_len": 32, "global_batch_tokens": 256} | data)
    read = [order(n).source for n in range(2400)]
    for s, (row, weights) in enumerate(
        zip(rows, (["0.2500", "0.0000"], ["0.0000", "0.5000"], ["0.7500", "0.5000"]), strict=True)
    ):
        source = order.sources[s]
        tokens = Manifest.load(dataset).sources[source.name].splits["train"].tokens
        share, epochs = read.count(s) / 2400, read.count(s) / source.blocks
        assert row.split() == [
            source.name,
            f"{tokens:,}",
            *weights,
            f"{share:.2%}",
            f"{epochs:.2f}",
        ]
    assert len({len(line) for line in (head, *rows)}) == 1


def test_many_epochs_are_worth_a_warning(dataset: Path) -> None:
    lines = table(dataset, 320, weights={"code": 1, "sums": 1e-2})
    epochs = float(lines[4].split()[-1])
    assert lines[4].startswith("code")
    assert epochs > 4
    assert lines[5:] == [
        f"warning: code is read {epochs:.1f} times; beyond about 4 epochs repeated text is worth"
        " less and less (Muennighoff et al. 2023): add text, lower its weight or set"
        " data.max_epochs"
    ]
    assert not [line for line in table(dataset, 200, weights={"code": 1}) if "warning" in line]


def test_a_source_that_leaves_and_a_phase_that_never_comes_are_named(dataset: Path) -> None:
    lines = table(
        dataset,
        300,
        max_epochs={"code": 0.5},
        phases=[{"from_tokens": 1e6, "weights": {"code": 1}}],
    )
    order = order_of(
        Manifest.load(dataset),
        {"seq_len": 32, "global_batch_tokens": 256, "max_epochs": {"code": 0.5}},
    )
    left = order.stretches[1].begin
    assert order(left - 1).source == 2
    assert lines[-2:] == [
        f"code has been read as often as data.max_epochs allows after {left * 32:,} tokens",
        "warning: the phase from 999,936 tokens begins after the end of the run",
    ]
    assert not [
        line for line in table(dataset, left // 8, max_epochs={"code": 0.5}) if "allows" in line
    ]


def test_one_source_needs_one_line(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    manifest = dataclasses.replace(manifest, sources={"code": manifest.sources["code"]})
    order = order_of(manifest, {"seq_len": 32, "global_batch_tokens": 256})
    tokens = manifest.sources["code"].splits["train"].tokens
    text = exposure(order, manifest, samples=80, seq_len=32)
    assert (
        text == f"mixture: code alone, {tokens:,} tokens, {80 / order.sources[0].blocks:.2f} epochs"
    )


def test_a_run_longer_than_its_caps_is_refused(dataset: Path) -> None:
    order = order_of(
        Manifest.load(dataset), {"seq_len": 32, "global_batch_tokens": 256, "max_epochs": 2}
    )
    assert order.end == 2 * sum(source.blocks for source in order.sources)
    most = order.end // 8
    check_length(order, steps=most, **ROWS)
    with pytest.raises(
        UserError, match=f"The longest run is max_steps={most}, max_tokens={most * 256};"
    ):
        check_length(order, steps=most + 1, **ROWS)
    check_length(
        order_of(Manifest.load(dataset), {"seq_len": 32, "global_batch_tokens": 256}),
        steps=10**9,
        **ROWS,
    )
