"""The bench of moving averages: it takes steps and updates, and prints their ratio."""

import re
from types import ModuleType

import pytest


@pytest.mark.usefixtures("one_thread")
def test_it_prints_a_ratio(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--layers=1", "--width=32", "--rows=1", "--length=16", "--vocabulary=256"]
    monkeypatch.setattr("sys.argv", ["bench_average.py", *small, "--repeats=2"])
    script.main()
    step, update, share = re.findall(r"([\d.]+)(?: ms|% at)", capsys.readouterr().out)
    # The numbers are rounded to two digits behind the point.
    expected = 100 * float(update) / float(step)
    assert float(share) == pytest.approx(expected, abs=0.01 + 100 * 0.006 / float(step))
