"""scripts/addition.py at full size for one seed: GRPO gains, random rewards do not. It says so
by its exit code.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_reinforcement_learning_adds_what_random_rewards_do_not(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / "addition.py"), "--seeds", "0"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gain in sampled accuracy over 1 seeds: GRPO +0." in done.stdout
