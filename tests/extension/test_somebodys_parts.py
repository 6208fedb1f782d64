"""An optimizer and an objective of somebody else are one file each, named by class path."""

import json
from pathlib import Path

import torch
import yaml

from tests.conftest import RunCli

HERE = {"PYTHONPATH": str(Path(__file__).parent)}
NET = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=32",
]  # fmt: skip
RUN = [
    *NET, "--model.compile=off", "--max_steps=6", "--log_every=1", "--validate_every=3",
    "--sample_prompts=[]", "--data.seq_len=32", "--data.micro_batch_size=4",
    "--data.global_batch_tokens=256", "--data.val_tokens=512", "--trainer.precision=32-true",
]  # fmt: skip
OWN = [
    "--model.optimizer=somebody.momentum_sgd.MomentumSGD",
    "--model.optimizer.matrix_lr=0.2",
    "--model.optimizer.weight_decay=0.01",
    "--model.objective=somebody.focal.Focal",
    "--model.objective.gamma=1.0",
]


def test_a_run_learns_by_an_optimizer_and_an_objective_of_somebody_else(
    run_cli: RunCli, dataset: Path, tmp_path: Path
) -> None:
    where = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=own"]
    done = run_cli("fit", *RUN, *OWN, *where, env=HERE)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert any("val/nll" in row for row in rows), "the objective's own metric"
    checkpoint = torch.load(next((tmp_path / "own").rglob("*.ckpt")), weights_only=True)
    groups = {group["role"]: group for group in checkpoint["optimizer_states"][0]["param_groups"]}
    assert groups["matrix"]["initial_lr"] == 0.2
    assert groups["vector"]["weight_decay"] == 0.0 < groups["matrix"]["weight_decay"]
    saved = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())["model"]
    assert saved["optimizer"]["class_path"] == "somebody.momentum_sgd.MomentumSGD"
    assert saved["objective"]["init_args"] == {"gamma": 1.0}


def test_the_planner_reads_the_moments_of_somebodys_optimizer(run_cli: RunCli) -> None:
    moments = {}
    for optimizer in ("somebody.momentum_sgd.MomentumSGD", "lit_pretrain.optim.AdamW"):
        done = run_cli(
            "plan", *NET, "--max_tokens=1e6", f"--model.optimizer={optimizer}", "--json", env=HERE
        )
        assert done.returncode == 0, done.stderr
        moments[optimizer] = json.loads(done.stdout)["memory"]["states"]["moments"]
    sgd, adamw = moments.values()
    assert adamw == 2 * sgd > 0


def test_a_class_that_is_no_recipe_is_refused_by_name(run_cli: RunCli) -> None:
    for path in ("torch.optim.SGD", "somebody.momentum_sgd.Momentum", "somebody.nothing.SGD"):
        done = run_cli("plan", *NET, f"--model.optimizer={path}", env=HERE)
        assert done.returncode != 0
        assert path in done.stderr
        assert "OptimizerRecipe" in done.stderr
        assert "Traceback" not in done.stderr
