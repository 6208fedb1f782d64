"""scripts/transfer.py: the best rate by a parabola, and runs that are made once."""

from pathlib import Path
from types import ModuleType

import pytest


def test_a_parabola_gives_the_best_rate_between_two_that_were_tried(script: ModuleType) -> None:
    best = script.best_of({k: 3.0 + 0.01 * (k - 0.4) ** 2 for k in range(-3, 4)})
    assert best.power == pytest.approx(0.4)
    assert best.loss == pytest.approx(3.0)
    # Nothing is claimed beyond the rates that were tried.
    assert script.best_of({k: -float(k) for k in range(3)}).power == 2


@pytest.mark.slow
def test_finished_runs_are_not_made_again(
    script: ModuleType, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(__file__).parents[2] / "configs" / "pretrain" / "quickstart.yaml"
    command = [
        f"--config={config}", f"--data={dataset}", f"--out={tmp_path}", "--widths", "32", "64",
        "--depth=1", "--head_dim=16", "--powers", "-1", "0", "1", "--seeds=1",
        "--tokens_per_parameter=0.02", "--batch_tokens=128", "--seq_len=32",
        "--data.val_tokens=256", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    script.main(command)
    first = capsys.readouterr().out
    made = [line for line in first.splitlines() if " in " in line]
    assert len(made) == 2 * 2 * 3
    assert "| transfer | best rate moves by |" in first
    assert "| control | 64 |" in first
    script.main(command)
    again = capsys.readouterr().out
    assert not [line for line in again.splitlines() if " in " in line]
    assert again.splitlines()[-8:] == first.splitlines()[-8:]
