"""docs/guides/python.md and its notebook run on what the quickstart leaves, block by block."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
GUIDE = (GUIDES / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.S | re.M)


@pytest.fixture
def here(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of the quickstart, to work in."""
    for name in ("data", "runs"):
        shutil.copytree(quickstart / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


def test_the_blocks_of_the_guide_run_in_order(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "LoadedModel('runs/quickstart/checkpoints/step=00000002.ckpt'" in printed
    assert "bits per byte" in printed
    assert "runs/quickstrat does not exist" in printed
    assert names["trainer"].global_step == 20
    assert names["trainer"].callback_metrics["val/loss"] < 6.2  # ln 512 = 6.24 before the first
    assert (here / "script.ckpt").is_file()
    assert len(names["pieces"]) == len(names["losses"])


def test_a_stage_is_trained_in_twenty_lines() -> None:
    (block,) = [block for block in BLOCKS if "Stage(" in block]
    lines = [line for line in block.splitlines() if line.strip()]
    assert lines.index("trainer.fit(stage, datamodule=data)") < 20
    assert len(lines) <= 20


def test_the_notebook_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((GUIDES / "python.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # Outputs would hold the paths of somebody's machine.
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    names: dict[str, Any] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["ROOT"] == here
    assert 1 < names["bits_per_byte"]("prose") < 4
    assert "0.5: " in capsys.readouterr().out
