"""The script for a day with a GPU: what it keeps of parts that fail, hang or come too late."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


def test_what_a_part_printed_is_kept_however_it_ends(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script.LIMITS, "fit", 2)
    day = script.Day(tmp_path)
    assert day.run("machine", [sys.executable, "-c", "print('<fine>')"]) == "<fine>\n"
    day.note("machine", {"rate": 7})
    assert day.right
    assert day.run("tests", [sys.executable, "-c", "print('two'); raise SystemExit(3)"]) is None
    hangs = "import time; print('begun', flush=True); time.sleep(60)"
    assert day.run("fit", [sys.executable, "-c", hangs]) is None
    day.began -= script.WHOLE
    assert day.run("decoding", [sys.executable, "-c", ""]) is None
    assert not day.right
    kept = json.loads((tmp_path / "gpu_day.json").read_text())
    assert {name: part["state"] for name, part in kept.items()} == {
        "machine": "right", "tests": "exit code 3", "fit": "stopped after 2 s",
        "decoding": "not begun",
    }  # fmt: skip
    assert kept["machine"]["figures"] == {"rate": 7}
    assert [kept[name]["printed"] for name in ("tests", "fit")] == ["two\n", "begun\n"]
    page = (tmp_path / "gpu_day.html").read_text()
    assert "&lt;fine&gt;" in page
    assert "rate: 7" in page


def test_the_first_parts_leave_time_for_the_bench(script: ModuleType) -> None:
    """Whatever they take: tests and bench tell most."""
    first = ("machine", "data", "tests", "bench")
    assert tuple(script.LIMITS)[: len(first)] == first
    assert sum(script.LIMITS[name] for name in first) < script.WHOLE


def test_the_table_of_the_bench_is_read(script: ModuleType) -> None:
    printed = (
        "bf16-mixed            tokens/s  of best bare  of bare +docs  peak MiB\n"
        "bare compiled +docs     51,234         1.000          1.000    40,960   30.1 s\n"
        "lit_pretrain fit        50,111         0.978          0.978    40,000   35.0 s\n"
        "MFU against the measured matmul rate: 61.2%\n"
    )
    assert script.figures_of_bench(printed) == {
        "bare compiled +docs": "51,234 tokens/s, 1.000 of the best bare loop, 1.000 of the same"
        " work",
        "lit_pretrain fit": "50,111 tokens/s, 0.978 of the best bare loop, 0.978 of the same work",
        "MFU of the measured product": "61.2%",
    }
