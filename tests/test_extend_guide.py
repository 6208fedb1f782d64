"""docs/guides/extend.md: the files that it shows are parts, and its commands run with them, from a
folder that is on no path.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics
from tests.test_guides import ROOT, blocks, of_ours, own_files, shortened

PAGE = ROOT / "docs" / "guides" / "extend.md"
COMMANDS = [command for block in blocks(PAGE) for command in block]


@pytest.fixture(scope="module")
def here(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder after the quickstart, with the files of the guide, as the current one."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("data", "runs"):
        shutil.copytree(quickstart / name, folder / name)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "docs").symlink_to(ROOT / "docs")
    files = own_files(PAGE)
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The installed command does not search the current folder.
        patch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
        patch.setenv("WANDB_MODE", "offline")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        yield folder
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)


def run(part: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command of the guide that holds a text, in little; return what it printed."""
    (command,) = [command for command in COMMANDS if part in command]
    arguments = of_ours(command)
    assert arguments is not None
    code = main(shortened(arguments))
    out, err = capsys.readouterr()
    assert code == 0, f"{command}\n{out}\n{err}"
    return out


def test_each_part_has_about_ten_lines() -> None:
    parts = {}
    for text in own_files(PAGE).values():
        for part in re.split(r"\n(?=class |def )", f"\n{text}")[1:]:
            name = re.split(r"[ (:]", part, maxsplit=2)[1]
            parts[name] = len([line for line in part.splitlines() if line.strip()])
    assert parts.keys() == {
        "Focal", "SignDescent", "Parallel", "Largest", "Lines", "Shares", "no_shouting", "short",
    }  # fmt: skip
    assert max(parts.values()) <= 11, parts


def test_objective_optimizer_and_block(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("my_objective.Focal", capsys)
    saved = yaml.safe_load((here / "runs/own/config.yaml").read_text())["model"]
    assert saved["objective"] == {"class_path": "my_objective.Focal", "init_args": {"gamma": 1.0}}
    assert saved["net"]["block"] == "my_block.Parallel"
    checkpoint = torch.load(next((here / "runs/own").rglob("*.ckpt")), weights_only=True)
    groups = {group["role"]: group for group in checkpoint["optimizer_states"][0]["param_groups"]}
    assert groups["matrix"]["initial_lr"] == 0.001
    assert groups["matrix"]["weight_decay"] == 0.1 > groups["scalar"]["weight_decay"] == 0.0
    assert "def " in run("--run runs/own", capsys), "generate finds the block again"


def test_callback_logger_and_profiler(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("my_watch.Largest", capsys)
    assert "steps took" in out
    lines = (here / "lines.txt").read_text().splitlines()
    assert "'train/loss'" in lines[-1] or "'val/loss'" in lines[-1]
    assert list((here / "runs/watched").rglob("events.out.tfevents.*")), "beside TensorBoard"


def test_filter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("my_rules.no_shouting", capsys)
    assert "no_shouting" in (here / "data/quiet/manifest.json").read_text()


def test_reward(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("my_rules.short", capsys)
    rows = [row for row in read_metrics(here / "runs/brief") if "train/rewards/short" in row]
    assert rows
    assert all(0.0 <= row["train/rewards/short"] <= 1.0 for row in rows)


def test_weights_and_biases_and_mlflow(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real packages, without a network."""
    wandb = pytest.importorskip("wandb", reason="needs the wandb extra")
    mlflow = pytest.importorskip("mlflow", reason="needs the mlflow extra")
    try:
        run("[wandb, mlflow]", capsys)
    finally:
        wandb.finish()
    run_folder = here / "runs/shown"
    (offline,) = (run_folder / "wandb").glob("offline-run-*")
    assert next(offline.glob("run-*.wandb")).stat().st_size > 0
    assert list(run_folder.rglob("events.out.tfevents.*")), "beside TensorBoard"
    client = mlflow.MlflowClient(f"sqlite:///{here / 'runs/mlflow.db'}")
    experiment = client.get_experiment_by_name("lit_pretrain")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "shown"
    assert found.data.params
    (last,) = [row["val/loss"] for row in read_metrics(run_folder) if "val/loss" in row][-1:]
    assert found.data.metrics["val/loss"] == pytest.approx(last)
    assert found.data.metrics["train/loss"] > 0


def test_there_is_a_test_for_every_command() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    tried = re.findall(r'run\("([^"]+)", capsys\)', source)
    for command in COMMANDS:
        assert any(part in command for part in tried) or "--profile" in command, command
