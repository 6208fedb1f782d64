"""The summary is written from the metrics alone (tests/callbacks/test_metrics.py compares the
layout with a real run).
"""

import json
from pathlib import Path

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import METRICS, SUMMARY
from lit_pretrain.report.summary import Foreseen, write_summary

TRAIN = {
    "train/grad_norm": 1.0, "train/grad_norm_max": 2.0, "lr/matrix": 0.1, "time/data_fraction": 0.0,
    "time/compute_fraction": 1.0,
    "time/other_fraction": 0.0, "progress/flops": 3e9,
}  # fmt: skip


def write(run: Path) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for step, rate in ((10, 100.0), (20, 300.0), (30, 200.0)):
        values = {
            "train/loss": 5.0 - step / 10,
            "progress/tokens": step * 64.0,
            "throughput/tokens_per_second": rate,
        }
        lines.append(
            {
                "step": step,
                **values,
                "mixture/code": 0.25,
                "mixture/prose": 0.75,
                "train_loss/code": 1.0,
                "train_loss/prose": 2.0,
            }
            | TRAIN
        )
    for step, loss in ((15, 2.5), (30, 3.0)):
        by_source = {
            f"val_{kind}/{source}": loss + i
            for kind in ("loss", "bits_per_byte")
            for i, source in enumerate(("code", "prose"))
        }
        lines.append({"step": step, "val/loss": loss, "val/bits_per_byte": loss / 2, **by_source})
    (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_figures_come_from_the_metrics(tmp_path: Path) -> None:
    write(tmp_path)
    printed = {"plan": "plan: something", "mixture": "mixture over 99 tokens:"}
    figures = write_summary(
        tmp_path, seconds=99.0, train_seconds=88.0, **printed, samples={"def ": "f(x):"}
    )
    assert figures == {
        "val/loss": 3.0,
        "val/bits_per_byte": 1.5,
        "train/loss": 2.0,
        "tokens": 1920.0,
        "flops": 3e9,
    }
    page = (tmp_path / SUMMARY).read_text()
    for expected in (
        "plan: something",
        "```\nmixture over 99 tokens:\n```",
        "3.0000 nats per token at step 30",
        "best validation loss | 2.5000 at step 15",
        "throughput, median window | 200 tokens",
        "99.0 s, of which 88.0 s",
        "| code | 25.0% | 3.0000 | 3.0000 |",
        "| prose | 75.0% | 4.0000 | 4.0000 |",
        "### 'def '",
        "f(x):",
    ):
        assert expected in page, expected


@pytest.mark.parametrize(
    ("foreseen", "says"),
    [
        (
            Foreseen("val/loss", 2.9, (2.8, 3.1), "2.900 (2.800–3.100) by a law"),
            "by a law; actual 3.0000, +0.1000 (+3.45%), within |",
        ),
        (
            Foreseen("val/loss", 3.2, (3.1, 3.3), "3.200 (3.100–3.300) by a law"),
            "actual 3.0000, -0.2000 (-6.25%), outside its interval: this run contradicts the law |",
        ),
        (
            Foreseen("val/bits_per_byte", 1.5, None, "1.500 by a law"),
            "| forecast | 1.500 by a law; actual 1.5000, +0.0000 (+0.00%) |",
        ),
    ],
)
def test_forecast_interval_and_actual(tmp_path: Path, foreseen: Foreseen, says: str) -> None:
    write(tmp_path)
    write_summary(
        tmp_path, seconds=1.0, train_seconds=1.0, plan="", mixture="", samples={}, forecast=foreseen
    )
    assert says in (tmp_path / SUMMARY).read_text()


@pytest.mark.parametrize(("kept", "missing"), [("val/loss", "step"), ("train/loss", "validation")])
def test_a_run_that_a_callback_has_stopped_too_early(
    tmp_path: Path, kept: str, missing: str
) -> None:
    lines = [line for line in write(tmp_path) if kept in line]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=f"ended without a {missing}: a callback"):
        write_summary(tmp_path, seconds=1.0, train_seconds=1.0, plan="", mixture="", samples={})
