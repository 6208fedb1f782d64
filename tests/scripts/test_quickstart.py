"""The quickstart: the real script, on a small standard library and with a small network; set-up
has tests of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pretrain.report.run_folder import read_metrics

ROOT = Path(__file__).parents[2]
FIT = (
    "--model.net.n_layer=2 --model.net.width=32 --model.net.n_head=2 --model.compile=off"
    " --data.seq_len=32 --data.micro_batch_size=2 --data.global_batch_tokens=128"
    " --data.val_tokens=512 --model.net.max_seq_len=512 --sample_tokens=4 --trainer.accelerator=cpu"
)


@pytest.fixture
def checkout(small_library: Path, tmp_path: Path) -> Path:
    """What the script needs of a checkout, with this interpreter in the place of an environment."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "quickstart.sh", folder / "scripts")
    (folder / "scripts" / "setup.sh").write_text('echo "setup: ready" && [ $# = 0 ]\n')
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "env" / "bin").mkdir(parents=True)
    program = folder / "env" / "bin" / "lit_pretrain"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore "{small_library}" "$@"\n')
    program.chmod(0o755)
    for name in ("claim.py", "turns.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    python = folder / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def quickstart(checkout: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = (
        os.environ
        | {
            "VENV": "env",
            "OMP_NUM_THREADS": "1",
            "QUICKSTART_PREPARE": "--tokenizer.vocab_size=512",
        }
        | settings
    )
    script = str(checkout / "scripts" / "quickstart.sh")
    return subprocess.run(
        ["bash", script],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.mark.timeout(1200)  # seven processes that import torch: half a minute on a quiet machine
def test_it_goes_from_nothing_to_text_and_on_from_where_it_ended(checkout: Path) -> None:
    first = quickstart(checkout, QUICKSTART_FIT=f"{FIT} --max_steps=4 --checkpoint_every=2")
    assert first.returncode == 0, first.stdout + first.stderr
    verbs = [
        line.split()[2]
        for line in first.stdout.splitlines()
        if line.startswith("$ env/bin/lit_pretrain")
    ]
    assert verbs == ["prepare", "fit", "validate", "generate"]
    run = checkout / "runs" / "quickstart"
    assert [line["step"] for line in read_metrics(run) if "val/loss" in line] == [4]
    for source in ("code", "prose", "tests"):
        assert f"\n{source} " in first.stdout.split("validate --run")[1]
    assert "\ndef " in first.stdout.split("generate --run")[1]
    # Killed after its second step: the next start prepares nothing anew and goes on.
    for lost in (run / "summary.md", run / "checkpoints" / "step=00000004.ckpt"):
        lost.unlink()
    (run / "checkpoints" / "best.json").unlink(missing_ok=True)
    second = quickstart(checkout, QUICKSTART_FIT=f"{FIT} --max_steps=4 --checkpoint_every=2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "already prepared with this config" in second.stderr
    assert "step=00000002.ckpt, step 2" in second.stdout
    assert (run / "summary.md").is_file()


def test_a_run_that_is_complete_is_not_trained_again(checkout: Path) -> None:
    (checkout / "env" / "bin" / "lit_pretrain").write_text('#!/bin/sh\necho "ran $1"\n')
    printed = quickstart(checkout).stdout.splitlines()
    assert [line for line in printed if line.startswith("ran")] == [
        "ran prepare", "ran fit", "ran validate", "ran generate",
    ]  # fmt: skip
    (checkout / "runs" / "quickstart").mkdir(parents=True)
    (checkout / "runs" / "quickstart" / "summary.md").write_text("")
    again = quickstart(checkout).stdout
    assert [line for line in again.splitlines() if line.startswith("ran")] == [
        "ran prepare",
        "ran validate",
        "ran generate",
    ]
    assert "runs/quickstart is complete" in again


def test_it_stops_at_the_first_verb_that_fails(checkout: Path) -> None:
    done = quickstart(checkout, QUICKSTART_PREPARE="--tokenizer.vocab_siz=512")
    assert done.returncode == 2
    assert "Did you mean '--tokenizer.vocab_size'?" in done.stderr
    assert "fit" not in done.stdout
