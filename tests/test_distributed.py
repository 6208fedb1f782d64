"""Two gloo ranks on a CPU, through the real command line: the same losses as one process, and checkpoints that change hands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pretrain.report.folder import read_metrics

pytestmark = pytest.mark.slow  # a dozen processes that each import everything
ROOT = Path(__file__).parents[1]
# AdamW in fp32: Muon's bf16 orthogonalisation would amplify the rounding of another order of sums.
BASE = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2", "--model.net.ffn_width=64", "--model.compile=off",
    "--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=0.003", "--data.seq_len=32", "--data.global_batch_tokens=512",
    "--data.val_tokens=512", "--max_steps=8", "--log_every=1", "--validate_every=4", "--checkpoint_every=4", "--sample_prompts=[]",
    "--trainer.precision=32-true", "--trainer.accelerator=cpu",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--data.micro_batch_size=4"]
ONE = ["--data.micro_batch_size=8"]


def fit(dataset: Path, runs: Path, name: str, *extra: str) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "lit_pretrain",
        "fit",
        *BASE,
        f"--data.path={dataset}",
        f"--runs={runs}",
        f"--name={name}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *extra], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def figures(run: Path) -> list[float]:
    return [m.get("train/loss", m.get("val/loss")) for m in read_metrics(run)]


@pytest.fixture(scope="module")
def one(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("ranks")
    fit(dataset, runs, "one", *ONE)
    return runs


@pytest.mark.parametrize(
    "extra",
    [[], ["--trainer.strategy=fsdp"], ["--trainer.strategy=fsdp", "--sharded_checkpoints=true"]],
    ids=["ddp", "fsdp", "fsdp-sharded"],
)
def test_two_ranks_equal_one_and_hand_over(dataset: Path, one: Path, extra: list[str], request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    fit(dataset, one, name, *TWO, *extra)
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)
    checkpoint = one / name / "checkpoints" / "step=00000008.ckpt"
    assert checkpoint.is_dir() == ("--sharded_checkpoints=true" in extra)
    # The middle one remains; one process goes on from what two have saved.
    subprocess.run(["rm", "-r", str(checkpoint)], check=True)
    fit(dataset, one, name, *ONE, "--resume=auto")
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)


def test_two_ranks_go_on_from_one(dataset: Path, one: Path) -> None:
    fit(dataset, one, "begun", *ONE)
    (one / "begun" / "checkpoints" / "step=00000008.ckpt").unlink()
    fit(dataset, one, "begun", *TWO, "--resume=auto")
    assert figures(one / "begun") == pytest.approx(figures(one / "one"), abs=1e-5)
