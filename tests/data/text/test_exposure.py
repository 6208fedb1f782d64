"""Exposure: the table before a run says what the run will read."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.text.mixture import check_length, exposure, order_of
from lit_pretrain.errors import UserError

ROWS = {"rows": 8, "seq_len": 32}


def table(dataset: Path, steps: int, **data: Any) -> list[str]:
    manifest = Manifest.load(dataset)
    order = order_of(manifest, {"seq_len": 32, "global_batch_tokens": 256} | data)
    return exposure(order, manifest, steps=steps, **ROWS).splitlines()


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
    text = exposure(order, manifest, steps=10, **ROWS)
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
