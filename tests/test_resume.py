"""A killed run goes on as if it had never stopped: the same losses, bit for bit, through the real command line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.report.folder import read_metrics

ROOT = Path(__file__).parents[1]
STEPS = 14
BASE = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2", "--model.net.ffn_width=64", "--model.net.dropout=0.1",
    "--model.compile=off", "--data.seq_len=32", "--data.global_batch_tokens=256", "--data.val_tokens=256", f"--max_steps={STEPS}",
    "--log_every=1", "--validate_every=5", "--checkpoint_every=4", "--keep_checkpoints=3", "--sample_prompts=[]",
    "--trainer.accelerator=cpu",
]  # fmt: skip


def options(dataset: Path, runs: Path, name: str, *extra: str) -> list[str]:
    return ["fit", *BASE, f"--data.path={dataset}", f"--runs={runs}", f"--name={name}", *extra]


def losses(run: Path) -> list[tuple[Any, ...]]:
    return [(m["step"], m.get("train/loss"), m.get("train/grad_norm"), m.get("val/loss")) for m in read_metrics(run)]


def start(arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "lit_pretrain", *arguments], stdout=file, stderr=file, env=environment
        )


def stop_at(process: "subprocess.Popen[bytes]", run: Path, step: int, number: int) -> int:
    end = time.time() + 120
    while time.time() < end and process.poll() is None:
        file = run / "metrics.jsonl"
        if file.exists() and f'{{"step": {step},' in file.read_text():
            process.send_signal(number)
            break
        time.sleep(0.005)
    return process.wait(120)


@pytest.mark.parametrize(
    ("number", "code", "extra"),
    [
        (signal.SIGTERM, 75, ["--data.micro_batch_size=8"]),
        (signal.SIGUSR1, 75, ["--data.micro_batch_size=2"]),
        (signal.SIGKILL, -signal.SIGKILL, ["--data.micro_batch_size=2", "--data.num_workers=2"]),
    ],
    ids=["SIGTERM", "SIGUSR1-accumulation", "SIGKILL-workers-accumulation"],
)
def test_a_stopped_run_equals_an_uninterrupted_one(dataset: Path, tmp_path: Path, number: int, code: int, extra: list[str]) -> None:
    whole = start(options(dataset, tmp_path, "whole", *extra), tmp_path / "whole.log")
    assert whole.wait(180) == 0, (tmp_path / "whole.log").read_text()
    stopped = start(options(dataset, tmp_path, "stopped", "--resume=auto", *extra), tmp_path / "stopped.log")
    assert stop_at(stopped, tmp_path / "stopped", 6, number) == code, (tmp_path / "stopped.log").read_text()
    if code == 75:
        assert "--resume auto" in (tmp_path / "stopped.log").read_text()
    resumed = start(options(dataset, tmp_path, "stopped", "--resume=auto", *extra), tmp_path / "resumed.log")
    assert resumed.wait(180) == 0, (tmp_path / "resumed.log").read_text()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_across_the_end_of_an_epoch_and_past_a_torn_checkpoint(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # `code` is the smallest source: at full weight 14 steps of 8192 tokens read it several times over.
    extra = ["--data.weights={code: 1}", "--data.global_batch_tokens=8192", "--data.micro_batch_size=64"]
    assert main(options(dataset, tmp_path, "whole", *extra)) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    folder = tmp_path / "torn" / "checkpoints"
    for name in ("step=00000014.ckpt", "best.json"):
        (folder / name).unlink(missing_ok=True)
    newest = folder / "step=00000012.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(options(dataset, tmp_path, "torn", "--resume=auto", *extra)) == 0
    assert "step=00000012.ckpt is torn" in capsys.readouterr().err
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")


def test_weights_alone_start_a_new_run(dataset: Path, tmp_path: Path) -> None:
    assert main(options(dataset, tmp_path, "parent", "--data.micro_batch_size=8")) == 0
    child = [o for o in options(dataset, tmp_path, "child", "--data.micro_batch_size=8")[1:] if not o.startswith("--model.net")]
    assert main(["finetune", f"--from={tmp_path / 'parent'}", *child]) == 0
    final = [m for m in read_metrics(tmp_path / "parent") if "val/loss" in m][-1]["val/loss"]
    first = read_metrics(tmp_path / "child")[0]
    assert first["step"] == 1
    assert first["train/loss"] < final + 0.5  # far below the loss of guessing, ln 512 = 6.24
    assert main(["finetune", *child[:-1]]) == 2  # no parent


@pytest.fixture(scope="module")
def begun(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("begun")
    assert main(options(dataset, runs, "run", "--data.micro_batch_size=8")) == 0
    for name in ("step=00000014.ckpt", "best.json"):
        (runs / "run" / "checkpoints" / name).unlink(missing_ok=True)
    return runs


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("--data.seed=5", "data.seed: the checkpoint has 0, this run 5"),
        ("--data.global_batch_tokens=512", "data.global_batch_tokens: the checkpoint has 256, this run 512"),
        ("--model.net.width=64", "model.net.width: the checkpoint has 32, this run 64"),
        ("--model.seed=3", "model.seed: the checkpoint has 0, this run 3"),
        ("--model.schedule.kind=linear", "model.schedule.kind"),
        ("--data.weights={code: 1}", "data.weights"),
        ("--max_steps=20", "max_steps: the checkpoint has 14, this run 20"),
    ],
)
def test_resume_refuses_other_settings(dataset: Path, begun: Path, change: str, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in (begun / "run" / "checkpoints").iterdir())
    assert main(options(dataset, begun, "run", "--data.micro_batch_size=8", "--resume=auto", change)) == 2
    assert field in capsys.readouterr().err
    assert sorted(p.name for p in (begun / "run" / "checkpoints").iterdir()) == before


def test_a_new_run_does_not_overwrite(dataset: Path, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(dataset, begun, "run", "--data.micro_batch_size=8")) == 2
    assert "already holds a run" in capsys.readouterr().err
