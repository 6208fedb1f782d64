"""The script for a day with a GPU: what it keeps of parts that fail, hang or come too late."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_day.py"


@pytest.fixture(scope="module")
def gpu_day() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_day", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_part_printed_is_kept_however_it_ends(
    gpu_day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_day.LIMITS, "fit", 2)
    day = gpu_day.Day(tmp_path)
    assert day.run("machine", [sys.executable, "-c", "print('<fine>')"]) == "<fine>\n"
    day.note("machine", {"rate": 7})
    assert day.right
    assert day.run("tests", [sys.executable, "-c", "print('two'); raise SystemExit(3)"]) is None
    hangs = "import time; print('begun', flush=True); time.sleep(60)"
    assert day.run("fit", [sys.executable, "-c", hangs]) is None
    day.began -= gpu_day.WHOLE
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


def test_the_limits_leave_time_for_all_parts(gpu_day: ModuleType) -> None:
    assert gpu_day.LIMITS["machine"] + gpu_day.LIMITS["tests"] + gpu_day.LIMITS["bench"] < (
        gpu_day.WHOLE
    )


def test_the_table_of_the_bench_is_read(gpu_day: ModuleType) -> None:
    printed = (
        "bf16-mixed            tokens/s  of best bare  of bare +docs  peak MiB\n"
        "bare compiled +docs     51,234         1.000          1.000    40,960   30.1 s\n"
        "lit_pretrain fit        50,111         0.978          0.978    40,000   35.0 s\n"
        "MFU against the measured matmul rate: 61.2%\n"
    )
    assert gpu_day.figures_of_bench(printed) == {
        "bare compiled +docs": "51,234 tokens/s, 1.000 of the best bare loop, 1.000 of the same"
        " work",
        "lit_pretrain fit": "50,111 tokens/s, 0.978 of the best bare loop, 0.978 of the same work",
        "MFU of the measured product": "61.2%",
    }
