"""Remedies: what is proposed fits, and the next larger does not."""

import dataclasses
from pathlib import Path

import yaml

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.scaling.hardware import GIB
from lit_pretrain.scaling.memory import Layout, peak, remedies

ROOT = Path(__file__).parents[2]


def shape(name: str) -> ModelConfig:
    return ModelConfig(
        **yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text())["model"]["net"]
    )


def test_remedies_do_what_they_say() -> None:
    config, layout, limit = (
        shape("llama3_8b"),
        Layout(rows=4, seq_len=8192, devices=8, sharding="fsdp"),
        60 * GIB,
    )
    assert peak(config, layout).bytes > limit
    found = remedies(config, layout, limit)
    assert "activation checkpointing" in found[0]
    assert peak(config, dataclasses.replace(layout, checkpointing=True)).bytes <= limit
    many = Layout(rows=64, seq_len=2048, checkpointing=True)
    ways = remedies(shape("llama_124m"), many, 10 * GIB)
    rows = int(ways[0].removeprefix("--data.micro_batch_size "))
    assert (
        peak(shape("llama_124m"), dataclasses.replace(many, rows=rows, accumulates=True)).bytes
        <= 10 * GIB
    )
    assert (
        peak(shape("llama_124m"), dataclasses.replace(many, rows=2 * rows, accumulates=True)).bytes
        > 10 * GIB
    )
    assert remedies(config, Layout(rows=1, seq_len=8192), 1 * GIB) == []
    assert any("FSDP" in way for way in remedies(config, Layout(rows=1, seq_len=8192), limit))


def test_the_devices_that_remedies_name_divide_a_step() -> None:
    layout = Layout(rows=1, seq_len=8192, step_rows=24)
    assert "over at least 4 devices" in remedies(shape("llama3_8b"), layout, 60 * GIB)[0]
    assert remedies(shape("llama3_8b"), dataclasses.replace(layout, step_rows=6), 60 * GIB) == []


def test_remedies_count_rows_of_data() -> None:
    config = shape("llama_124m")
    pairs = Layout(rows=64, seq_len=2048, checkpointing=True, group=2)
    ways = remedies(config, pairs, 10 * GIB)
    micro = int(ways[0].removeprefix("--data.micro_batch_size "))
    assert (
        peak(config, dataclasses.replace(pairs, rows=2 * micro, accumulates=True)).bytes <= 10 * GIB
    )
    assert (
        peak(config, dataclasses.replace(pairs, rows=4 * micro, accumulates=True)).bytes > 10 * GIB
    )
