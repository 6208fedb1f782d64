"""`lit_pretrain sweep` as a user runs it: everything is planned first, and what failed is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.plan.question import PlanCLI

BASE: dict[str, Any] = {
    "model": {
        "net": {"n_layer": 1, "width": 16, "n_head": 1, "max_seq_len": 32, "vocab_size": 512},
        "optimizer": "MuonAdamW",
        "compile": "off",
    },
    "data": {"seq_len": 32, "global_batch_tokens": 128, "val_tokens": 256},
    "trainer": {"accelerator": "cpu"},
    "sample_prompts": [], "validate_every": 0, "checkpoint_every": 0, "log_every": 1,
    "max_steps": 4, "name": "of the base", "runs": "of/the/base",
}  # fmt: skip
GRID = "--grid=model.optimizer.matrix_lr=0.01,0.02"


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def sweep(base: str, out: Path, *options: str) -> int:
    try:
        return main(["sweep", base, f"--out={out}", *options])
    except SystemExit as stop:  # of the parser
        return int(str(stop.code))


def made(out: Path) -> list[str]:
    return (out / "made.txt").read_text().split() if (out / "made.txt").exists() else []


def test_all_runs_and_their_cost_are_shown_first(
    base: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(base, out, GRID, "--grid=max_tokens=512,1024", "--seeds=2", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert shown.count("seed=1") == 4
    assert "total: 8 runs" in shown
    assert not out.exists()
    assert sweep(base, out, GRID, "--dry_run", "--device=H100", "--price=2") == 0
    assert "at $2.00 a device-hour (40% of the peak" in capsys.readouterr().out


POINTS: list[dict[str, Any]] = [
    {"model.optimizer": "AdamW", "model.optimizer.lr": 3e-3},
    {"model.optimizer.matrix_lr": 0.03, "model.clip_norm": None},
    {"max_tokens": 512},
    {"data.weights": {"story": 2.0, "code": 1.0}, "model.schedule.warmup": "10%"},
    {"model.net.n_layer": 2, "model.net.tie_embeddings": True, "trainer.precision": "bf16-mixed"},
    {},
]


@pytest.mark.parametrize("number", range(len(POINTS)))
def test_a_run_gets_what_its_point_says_and_nothing_else(
    number: int, base: str, out: Path, tmp_path: Path
) -> None:
    point = POINTS[number]
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump([point]))
    options = ("--engine=list", "--seeds=2", f"--points={file}")
    assert sweep(base, out, *options) == 0
    configs = [yaml.safe_load(path.read_text()) for path in sorted(out.glob("configs/*.yaml"))]
    assert [config["model"].pop("seed") for config in configs] == [0, 1]
    assert [config["data"].pop("seed") for config in configs] == [0, 1]
    assert len({config.pop("name") for config in configs}) == 2
    assert {config.pop("runs") for config in configs} == {str(out)}
    assert configs[0] == configs[1]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configs[0]))
    shared = {name: value for name, value in BASE.items() if name not in ("name", "runs")}
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(shared))
    ordered = sorted(point.items(), key=lambda item: item[0].count("."))
    arguments = [f"--{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in ordered]
    given = PlanCLI(["--config", str(tmp_path / "shared.yaml"), *arguments]).config.as_dict()
    found = PlanCLI(["--config", str(tmp_path / "run.yaml")]).config.as_dict()
    for config in (given, found):
        del config["config"]
    assert found == given


def test_a_class_of_data_by_its_name_alone_takes_seeds(out: Path, tmp_path: Path) -> None:
    data = "lit_pretrain.data.text.text_data.TextData"
    model = BASE["model"] | {"net": BASE["model"]["net"] | {"max_seq_len": 512}}
    file = tmp_path / "named.yaml"
    file.write_text(yaml.safe_dump(BASE | {"data": data, "model": model}))
    assert sweep(str(file), out, "--engine=list", "--seeds=2") == 0
    configs = [yaml.safe_load(path.read_text()) for path in sorted(out.glob("configs/*.yaml"))]
    assert [config["data"] for config in configs] == [
        {"class_path": data, "init_args": {"seed": seed}} for seed in (0, 1)
    ]


def test_finished_runs_are_kept_and_more_values_are_added(
    base: str, out: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    options = (GRID, "--compare=false", "--jobs=2")
    assert sweep(base, out, *options) == 0
    assert sorted(made(out)) == ["matrix_lr=0.01", "matrix_lr=0.02"]
    assert sweep(base, out, *options) == 0
    assert len(made(out)) == 2
    assert sweep(base, out, "--grid=model.optimizer.matrix_lr=0.01,0.02,0.04", *options[1:]) == 0
    assert made(out)[2:] == ["matrix_lr=0.04"]
    capsys.readouterr()
    assert sweep(base, out, *options, "--set={max_steps: 5}") == 2
    assert "was made by other settings: max_steps was 4 and is 5" in capsys.readouterr().err


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_run_that_fails_is_named_and_the_others_go_on(
    code: int, base: str, out: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "codes").write_text(json.dumps({"matrix_lr=0.01": code}))
    assert sweep(base, out, GRID, "--compare=false") == 1
    assert made(out) == ["matrix_lr=0.01", "matrix_lr=0.02"]
    shown = capsys.readouterr()
    assert f"1 of 2 runs failed: matrix_lr=0.01 (exit code {code}): error: it went" in shown.err
    assert "done: 2 runs" not in shown.out


def test_a_failure_is_named_where_the_other_runs_cannot_be_compared(
    base: str, out: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "codes").write_text(json.dumps({"matrix_lr=0.01": 1}))
    assert sweep(base, out, "--grid=model.optimizer.matrix_lr=0.01,0.02,0.04") == 1
    shown = capsys.readouterr().err
    assert "warning: the runs that have finished are not compared" in shown
    assert "1 of 3 runs failed: matrix_lr=0.01" in shown


@pytest.mark.slow
def test_kills_leave_what_the_same_command_goes_on_with(
    base: str, out: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run is killed, then the sweep itself, by SIGKILL: no handler runs."""
    out.mkdir()
    (out / "seconds").write_text("60")
    code = (
        "import sys\nfrom lit_pretrain.cli.sweep import launch\n"
        "launch.training_command = lambda config, devices, launched:"
        f" [sys.executable, {str(stand_in)!r}, str(config)]\n"
        "from lit_pretrain.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    options = [GRID, "--compare=false", "--jobs=2"]
    words = [sys.executable, "-c", code, "sweep", base, f"--out={out}", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    children: list[int] = []
    try:
        assert process.stdout is not None
        until = time.monotonic() + 120
        while len(made(out)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = [int(pid) for pid in tasks.read_text().split()]
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        for line in process.stdout:
            if "exit code -9" in line:
                break
        process.kill()
        process.wait()
        # What is left of it still holds the folder.
        assert sweep(base, out, *options) == 2
        assert "are being made by another sweep" in capsys.readouterr().err
    finally:
        process.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
    (out / "seconds").unlink()
    until = time.monotonic() + 60
    while sweep(base, out, *options) != 0 and time.monotonic() < until:
        time.sleep(0.1)  # until the kernel has buried the last child
    assert sorted(made(out)[2:]) == ["matrix_lr=0.01", "matrix_lr=0.02"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "option": (
        ["--grid=model.optimizer.matrix_rl=0.1"],
        "Did you mean 'model.optimizer.matrix_lr'",
    ),
    "value": (["--grid=max_steps=4,few"], "max_steps"),
    "combination": (["--grid=data.seq_len=32,64"], "--data.seq_len=64: data.seq_len=64 is longer"),
    "class": (["--grid=model.optimizer=Adamw2"], "Adamw2"),
    "ours": (["--grid=name=a,b"], "name is for the sweep to set"),
    "of a plan": (["--grid=price=1,2"], "price is no option of `fit`"),
    "set": ([GRID, "--set={runs: x}"], "set: runs is for the sweep to set: their folder is out"),
    "nothing": ([], "nothing to sweep: say what the runs differ in by --grid"),
    "range alone": (["--range=a=1:2", "--seeds=2"], "say how often by --random"),
    "seeds": ([GRID, "--seeds=0"], "--seeds 0 must be at least 1"),
    "jobs": ([GRID, "--jobs=0"], "jobs=0 must be at least 1"),
    "points": (["--points=nowhere.yaml"], "nowhere.yaml does not exist"),
    "devices": (
        ["--grid=trainer.devices=1,2", "--engine=slurm"],
        "the runs take 1 and 2 devices, and the tasks of a job array are all alike",
    ),
    "own option": ([GRID, "--gird=a=1"], "--grid"),
    "out": (["--out=/dev/null/x", GRID], "/dev/null/x cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_starts_after_a_mistake(
    case: str, base: str, out: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = REFUSED[case]
    capsys.readouterr()
    assert sweep(base, out, *options) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_real_runs_are_compared_with_the_best(
    dataset: Path, base: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"--set={{data: {{path: {dataset}}}, max_steps: 6}}"
    options = ("--grid=model.optimizer.matrix_lr=0.0001,0.05", "--jobs=2", path)
    assert sweep(base, out, *options) == 0
    shown = capsys.readouterr().out
    (best,) = [line for line in shown.splitlines() if "best, baseline" in line]
    assert best.startswith("matrix_lr=0.05")
    assert (out / "comparison.png").is_file()
    assert any((out / "comparison").iterdir())
