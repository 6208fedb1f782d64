"""What scripts/same_results.py calls equal, and what it does not."""

from pathlib import Path
from types import ModuleType


def test_values_are_compared_to_the_last_bit_without_times(script: ModuleType) -> None:
    line = {
        "step": 1,
        "train/loss": 0.1 + 0.2,
        "train/grad_norm": float("nan"),
        "time/step_seconds": 1.0,
    }
    assert script.compare_values([line], [line | {"time/step_seconds": 2.0}]) == ("3 values", None)
    other = line | {"train/loss": 0.3}
    assert "loss: 0.30000000000000004, then 0.3" in script.compare_values([line], [other])[1]
    assert "grad_norm: nan, then None" in script.compare_values([line], [{"step": 1}])[1]
    assert "step: None, then 1" in script.compare_values([line], [line, line])[1]
    assert script.compare_values([], [])[1] == "there are none"


def test_files_are_compared_byte_by_byte(script: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "x").write_text("made 2026-01-02T03:04:05")
    a, b = tmp_path / "a", tmp_path / "b"
    assert script.compare_files(a, b) == ("1 files", None)
    (b / "part" / "x").write_text("made 2026-01-02T03:04:06")
    assert script.compare_files(a, b) == ("1 files", "part/x")
    assert script.compare_files(a, b, script.TIME) == ("1 files", None)
    (b / "y").write_text("")
    assert script.compare_files(a, b, script.TIME) == ("1 files", "y")


def test_of_a_text_the_numbers_count(script: ModuleType) -> None:
    assert script.compare_numbers("loss 1.25 at 3", "the loss is 1.25 after 3") == (
        "2 numbers (other words)",
        None,
    )
    assert script.compare_numbers("loss 1.25", "loss 1.26")[1] == "1.25, then 1.26"
    assert script.compare_numbers("loss 1.25", "loss 1.25, 7")[1] is not None
