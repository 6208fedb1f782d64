"""The bench of the noise scale: steps with and without a measurement, and what it adds."""

import re
from types import ModuleType

import pytest


@pytest.mark.usefixtures("one_thread")
def test_it_prints_both_steps_and_the_share(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--layers=1", "--width=32", "--rows=1", "--length=16", "--vocabulary=256"]
    monkeypatch.setattr("sys.argv", ["bench_noise_scale.py", *small, "--repeats=3"])
    script.main()
    said = capsys.readouterr().out
    found = re.fullmatch(
        r"step \d+ ms, with a measurement \d+ ms: ([+-][\d.]+)%, at N = 10 ([+-][\d.]+)%\n", said
    )
    assert found is not None, said
    assert float(found[2]) == pytest.approx(float(found[1]) / 10, abs=0.011)
