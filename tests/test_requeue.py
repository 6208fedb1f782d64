"""Launchers that start a run again: torchrun after a killed worker, Slurm after a preemption. The
run goes on by itself, to the same bits.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_pretrain.report.goodput import read_attempts
from tests.prepare.engine.conftest import slurm  # noqa: F401  # a fixture
from tests.test_hang import BASE as TINY
from tests.test_resume import losses

ROOT = Path(__file__).parents[1]
STEPS = 8
BASE = [*TINY, f"--max_steps={STEPS}", "--validate_every=4", "--resume=auto"]
LAUNCHED = """
import os, signal, time
import lightning as L

class Killed(L.Callback):
    '''Kills rank 1 before step 6, the first time.'''

    def on_train_batch_start(self, trainer, *args) -> None:
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and trainer.global_rank == 1 and trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

class Waits(L.Callback):
    '''Takes its time in step 6, the first time.'''

    def on_train_batch_start(self, trainer, *args) -> None:
        if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and trainer.global_step == 5:
            print("now", flush=True)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                time.sleep(0.05)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the callbacks."""
    (tmp_path / "launched.py").write_text(LAUNCHED)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    places = os.pathsep.join([str(ROOT), str(folder)])
    return {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": places,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # docs/guides/operations.md
    }  # fmt: skip


def wait_until(done: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.mark.slow
def test_torchrun_restarts_after_a_worker_was_killed(folder: Path, dataset: Path) -> None:
    for name, extra in (("whole", []), ("killed", ["--trainer.callbacks+=launched.Killed"])):
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                "--max-restarts=1", "-m", "lit_pretrain", "fit", *BASE, f"--data.path={dataset}",
                f"--runs={folder}", f"--name={name}", "--trainer.devices=2", *extra,
            ],
            cwd=folder, env=os.environ | environment(folder), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert losses(folder / "killed") == losses(folder / "whole")
    assert [each.first_step for each in read_attempts(folder / "killed")] == [0, 4]


@pytest.mark.slow
def test_slurm_requeues_a_preempted_job(
    folder: Path,
    dataset: Path,
    slurm: dict[str, str],  # noqa: F811  (the fixture)
) -> None:
    """`scontrol requeue` is what a preemption does: SIGTERM, time to save, and another start."""
    command = [sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit", *BASE]
    places = [f"--data.path={dataset}", f"--runs={folder}"]
    subprocess.run(
        [*command, *places, "--name=whole"], cwd=folder, env=os.environ | environment(folder),
        check=True, capture_output=True,
    )  # fmt: skip
    line = " ".join([*command, *places, "--name=job", "--trainer.callbacks+=launched.Waits"])
    (folder / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --requeue\n#SBATCH --open-mode=append\n#SBATCH --output=job.txt\n"
        f"#SBATCH --ntasks=1\nsrun {line}\n"
    )
    given = os.environ | environment(folder) | slurm

    def ask(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = ask("sbatch", "--parsable", "job.sh").strip()
    output = folder / "job.txt"

    def said() -> str:
        return output.read_text() if output.exists() else ""

    wait_until(lambda: "now" in said(), 120, said)
    ask("scontrol", "requeue", job)
    wait_until(lambda: "stopped by SIGTERM after step 6" in said(), 120, said)

    def state() -> str:
        return ask("squeue", "-h", "-j", job, "-o", "%T")

    wait_until(lambda: "PENDING" in state(), 60, said)
    ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm waits for two minutes
    wait_until(lambda: "done: " in said(), 240, said)
    assert losses(folder / "job") == losses(folder / "whole")
    assert [each.first_step for each in read_attempts(folder / "job")] == [0, 6]
