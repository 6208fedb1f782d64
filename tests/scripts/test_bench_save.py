"""The bench of saving runs: it saves in both ways and prints their ratio."""

from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.usefixtures("one_thread")
def test_it_prints_a_ratio(
    script: ModuleType,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--layers=1", "--width=32", "--saves=2", f"--data={dataset}"]
    monkeypatch.setattr("sys.argv", ["bench_save.py", *arguments])
    assert script.main() == 0
    said = capfd.readouterr().out
    assert " MB, 2 saves of each kind" in said
    [at_once], [beside], [ratio] = (
        [float(line.split()[1]) for line in said.splitlines() if line.startswith(name)]
        for name in ("synchronous ", "asynchronous ", "ratio ")
    )
    assert ratio == pytest.approx(beside / at_once, rel=0.1)
