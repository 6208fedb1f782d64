"""Progress: plain lines where nobody watches, one live line on a terminal."""

import io
from types import SimpleNamespace
from typing import Any

import pytest

from lit_pretrain.callbacks.progress import ProgressLine
from lit_pretrain.report.charts import clock, short

VALUES = {"progress/tokens": 40_960.0, "throughput/tokens_per_second": 2048.0, "train/loss": 3.25}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (40_960, "41k"), (1.5e9, "1.5B"), (2.2e13, "22T")],
)
def test_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01"), (-3, "0:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def run(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    line = ProgressLine(stream)
    trainer: Any = SimpleNamespace(
        global_step=10, max_steps=40, is_global_zero=True
    )  # resumed at step 10
    line.on_train_start(trainer)
    now[0] += 20.0
    trainer.global_step = 20
    line.on_train_batch_end(trainer)
    line(20, VALUES)
    line(20, {"val/loss": 3.5, "val/bits_per_byte": 1.25})
    line.teardown(trainer, None, "fit")


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    run(stream, monkeypatch)
    assert stream.getvalue().splitlines() == [
        # 10 steps took 20 s, 20 are left.
        "step 20/40 | 41k tokens | 2.05k tok/s | loss 3.2500 | left 0:40",
        "step 20/40 | val 3.5000 (1.2500 bits/byte)",
    ]


def test_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    run(stream, monkeypatch)
    shown = stream.getvalue()
    assert "20/40" in shown
    assert "\x1b[" in shown  # drawn in place
