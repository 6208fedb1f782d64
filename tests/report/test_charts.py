"""Charts: what they show of a run, and that a picture holds it."""

import struct
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from lit_pretrain.report.charts import (
    MOST_SERIES,
    PNG_HEIGHT,
    PNG_WIDTH,
    Chart,
    chart_png,
    chart_svg,
    loss_charts,
    number,
    other_charts,
    ticks,
)


def lines(sources: tuple[str, ...] = ("a", "b")) -> list[dict[str, float]]:
    told: list[dict[str, float]] = []
    for step in (10, 20, 30):
        told.append({"step": step, "train/loss": 7 - step / 10, "lr/matrix": 0.1})
        told[-1] |= {f"train_loss/{s}": 6 - i for i, s in enumerate(sources)}
        told[-1] |= {"layers/norm/0": 1.0, "layers/norm/1": 2.0, "layers/rms/0": 3.0}
    told.append({"step": 30, "val/loss": 4.5, "forecast/loss": 4.4, "val/bits_per_byte": 2.0})
    told[-1] |= {f"val_bits_per_byte/{s}": 2.0 - i for i, s in enumerate(sources)}
    return told


def test_charts_of_a_run() -> None:
    charts = {c.title: c for c in loss_charts(lines(), unit="nats", forecast="val/loss")}
    assert list(charts) == [
        "loss, nats",
        "validation bits per byte by source",
        "training loss by source, nats",
        "forecast with its 95 % interval, loss",
    ]
    assert charts["loss, nats"].series == {
        "training": [(10, 6.0), (20, 5.0), (30, 4.0)],
        "validation": [(30, 4.5)],
    }
    assert list(charts["training loss by source, nats"].series) == ["a", "b"]
    assert [chart.title for chart in other_charts(lines())] == [
        "learning rate by role", "layers: norm", "layers: rms",
    ]  # fmt: skip
    alone = [chart.title for chart in loss_charts(lines(("a",)), unit="nats")]
    assert alone == ["loss, nats"]  # by source it would be the same curve


def test_an_svg_shows_every_series_to_its_end_and_escapes_names() -> None:
    chart = Chart("a < b", {"<script>": [(0, 9.0), (50, 2.0), (100, 1.5)], "val": [(100, 1.75)]})
    figure = ET.fromstring(chart_svg(chart, "one"))
    words = "".join(figure.itertext())
    assert "a < b" in words
    assert "<script> 1.5" in words
    assert "val 1.75" in words
    ends = [circle for circle in figure.iter("circle") if float(circle.get("cx", "")) > 440]
    assert len(ends) == 2
    assert all(30 <= float(circle.get("cy", "")) < 236 for circle in ends)


def test_more_series_than_can_be_told_apart_are_counted() -> None:
    many = Chart("t", {f"s{i}": [(0, i), (1, i)] for i in range(MOST_SERIES + 3)})
    assert "and 3 more" in chart_svg(many, "one")


@pytest.mark.parametrize(
    "series",
    [{"a": [(0.0, 1.0)]}, {"a": [(0.0, 0.0), (5.0, 0.0)]}, {"a": [(1.0, -2.0), (1e9, 1e-7)]}],
)
def test_degenerate_curves_are_drawn(series: dict[str, list[tuple[float, float]]]) -> None:
    chart = Chart("t", series)
    ET.fromstring(chart_svg(chart, "one"))
    content = chart_png(chart)
    assert struct.unpack(">II", content[16:24]) == (PNG_WIDTH, PNG_HEIGHT)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.9, 5.2), (-1, 1e9), (1e-5, 2e-5), (2.0, 2.0)])
def test_ticks_are_round_and_within_the_ends(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)
    if len(found) > 2:
        assert len({f"{b - a:.3g}" for a, b in pairwise(found)}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0001234, "0.0001234"), (4.5678, "4.568"), (12_340, "12.34k"), (2e9, "2B")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
