"""The claim: a run beside its recorded neighbours, and which neighbours are taken."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from lit_pretrain.model.config import ModelConfig


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of 3 × 192 in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    net = {"n_layer": 3, "width": 192, "n_head": 3, "vocab_size": 2048, "activation": "relu2"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"net": net}, "max_steps": 600}))
    lines = [{"step": 600, "progress/tokens": 2457600.0}, {"step": 600, "val/bits_per_byte": 1.25}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.md").write_text("")
    return folder


def test_neighbours_are_half_and_twice_the_size(script: ModuleType) -> None:
    for layers, width in ((3, 192), (6, 384), (12, 768)):
        net = ModelConfig(n_layer=layers, width=width, n_head=width // 64, activation="relu2")
        half, twice = script.neighbours(net)
        assert 0.4 < script.working(half) / script.working(net) < 0.65
        assert 1.6 < script.working(twice) / script.working(net) < 2.5


def test_recorded_neighbours(
    script: ModuleType, run: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["claim.py"])
    script.main()
    assert "has no recorded neighbours" in capsys.readouterr().out
    own = script.result(run, 1.0)
    half = own | {"width": 128, "bits_per_byte": 1.31, "steps": 1200, "step_seconds": 0.5}
    twice = own | {"width": 256, "bits_per_byte": 1.29, "steps": 300, "step_seconds": 2.0}
    script.RECORD.parent.mkdir(parents=True)
    script.RECORD.write_text(json.dumps({"networks": [half, own | {"bits_per_byte": 1.26}, twice]}))
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["1.3100", "1.2500", "1.2900"]
    assert [line.split()[0] for line in lines[1:4]] == ["half", "this", "twice"]
    # A run of another length has other neighbours.
    script.RECORD.write_text(json.dumps({"networks": [half, own | {"steps": 9}, twice]}))
    script.main()
    assert "has no recorded neighbours" in capsys.readouterr().out


def test_a_run_that_has_not_finished(
    script: ModuleType, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "summary.md").unlink()
    monkeypatch.setattr("sys.argv", ["claim.py"])
    with pytest.raises(SystemExit, match="has not finished"):
        script.main()
