"""`lit_pretrain scaling sweep` as a user runs it: the cost first, then what is missing, and
nothing twice.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]

CONFIG = {
    "run": {
        "model": {
            "net": {"vocab_size": 512, "max_seq_len": 32, "tie_embeddings": True},
            "optimizer": {
                "class_path": "lit_pretrain.optim.AdamW", "init_args": {"weight_decay": 0.1},
            },
            "compile": "off",
        },
        "data": {"seq_len": 32, "micro_batch_size": 2, "val_tokens": 256},
        "trainer": {"accelerator": "cpu"},
        "sample_tokens": 2, "sample_prompts": [""], "validate_every": 0, "checkpoint_every": 0,
        "log_every": 1,
    },
    "sizes": {
        "w16": {"n_layer": 1, "width": 16, "n_head": 1},
        "w32": {"n_layer": 1, "width": 32, "n_head": 2},
    },
    "budgets": [{"flops": 1e9}, {"flops": 3e9, "sizes": ["w32"]}],
    "rule": "olmo",
}  # fmt: skip
NAMES = ["1e09_w16", "1e09_w32", "3e09_w32"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "out": str(tmp_path / "out")}))
    return str(path)


@pytest.fixture
def pretend(tmp_path: Path, stand_in: Path) -> Path:
    """Runs are made by the stand-in; the folder of the sweep."""
    assert stand_in.is_file()
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def sweep(config: str, *options: str) -> int:
    return main(["scaling", "sweep", "--config", config, *options])


def made(out: Path) -> list[str]:
    return (out / "made.txt").read_text().split() if (out / "made.txt").exists() else []


def test_options_and_configs_of_fit_are_told_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text("model: {seed: 1}\n")
    for arguments, said in (
        (["--config", str(file)], f"give it by its place: lit_pretrain sweep {file} --grid"),
        (["--model.optimizer.lr", "1"], "--grid model.optimizer.lr=VALUE,VALUE tries several"),
        (["--data.seq_len=64"], "--set '{data.seq_len: VALUE}' sets one for all runs"),
    ):
        assert main(["sweep", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_the_cost_comes_first_and_a_dry_run_writes_nothing(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(config, "--dry_run") == 0
    found = capsys.readouterr()
    assert "total: 3 runs, 4.832e+09 FLOPs" in found.out
    assert "rule: OLMo ladder: B = 2048" in found.out
    assert "OLMo's model ladder; after Porian et al. 2024" in found.out
    assert "time: not known before a run has finished" in found.out
    assert "fewer than 100 steps" in found.err
    assert not (tmp_path / "out").exists()
    # Three devices cannot share the base's step of 128 rows, but here the rule decides the step.
    run = {**CONFIG["run"], "trainer": {"devices": 3}}
    assert sweep(config, "--dry_run", "--run", json.dumps(run)) == 0
    capsys.readouterr()
    assert sweep(config, "--dry_run", "--device", "H100", "--price", "2") == 0
    assert "at $2.00 a device-hour (40% of the peak" in capsys.readouterr().out


def test_what_is_missing_is_made_once(
    config: str, pretend: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(config, "--jobs", "2") == 0
    assert sorted(made(pretend)) == NAMES
    assert "val loss 3.0000" in capsys.readouterr().out
    assert sweep(config) == 0
    assert len(made(pretend)) == 3
    (pretend / "1e09_w32" / "summary.md").unlink()
    assert sweep(config) == 0
    found = capsys.readouterr().out
    assert made(pretend)[3:] == ["1e09_w32"]
    assert "1 to make" in found
    assert "at the 1e+09 FLOP/s that finished runs reached" in found


def test_other_settings_are_refused_and_more_sizes_are_not(
    config: str, pretend: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(config) == 0
    assert sweep(config, "--lr_factor", "0.5") == 2
    assert "model.optimizer.init_args.lr was" in capsys.readouterr().err
    more = {
        **CONFIG,
        "out": str(pretend),
        "sizes": {**CONFIG["sizes"], "w48": {"n_layer": 1, "width": 48, "n_head": 2}},
    }
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    assert sweep(str(tmp_path / "more.yaml")) == 0
    assert made(pretend)[3:] == ["1e09_w48"]
    (pretend / "configs" / "1e09_w48.yaml").unlink()
    assert sweep(str(tmp_path / "more.yaml")) == 2
    assert "is a run that no sweep has made" in capsys.readouterr().err


def test_failures_are_named_and_a_mistake_stops_the_rest(
    config: str, pretend: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pretend / "codes").write_text(json.dumps({"1e09_w16": 3}))
    assert sweep(config) == 1
    assert (
        "1 of 3 runs failed: 1e09_w16 (exit code 3): error: it went wrong"
        in capsys.readouterr().err
    )
    assert made(pretend) == NAMES
    (pretend / "codes").write_text(json.dumps({"1e09_w16": 2}))
    (pretend / "3e09_w32" / "summary.md").unlink()
    assert sweep(config) == 1
    assert made(pretend)[3:] == ["1e09_w16"]
    assert sweep(config, "--launcher", "no-such-word") == 2
    assert "launcher: 'no-such-word' cannot be started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_stops_the_runs_and_the_same_command_goes_on(
    number: signal.Signals, exit_code: int, config: str, pretend: Path, tmp_path: Path
) -> None:
    (pretend / "seconds").write_text("60")
    code = (
        "import sys\nfrom lit_pretrain.cli.sweep import launch\n"
        "launch.training_command = lambda config,"
        f" devices, launched: [sys.executable, {str(tmp_path / 'pretended.py')!r},"
        " str(config)]\nfrom lit_pretrain.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", code, "scaling", "sweep", "--config", config, "--jobs", "2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while len(made(pretend)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(made(pretend)) == 2
        assert sweep(config) == 2  # the lock
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == exit_code
    assert f"stopped by {number.name}; what was being made has saved itself" in told
    (pretend / "seconds").unlink()
    assert sweep(config) == 0
    assert sorted(set(made(pretend))) == NAMES


def test_written_out(config: str, tmp_path: Path) -> None:
    assert sweep(config, "--engine", "list", "--launcher", "nice -n 10") == 0
    out = tmp_path / "out"
    lines = (out / "sweep.txt").read_text().splitlines()
    assert lines == [
        f"nice -n 10 python -m lit_pretrain fit --config {out}/configs/{name}.yaml --resume auto"
        for name in NAMES
    ]
    several = [
        *(
            "--run",
            (
                '{"model": {"optimizer": "lit_pretrain.optim.AdamW"}, "data": {"seq_len": 32},'
                ' "trainer": {"devices": 4}}'
            ),
        ),
        "--out",
        str(tmp_path / "t"),
    ]
    assert sweep(config, "--engine", "list", "--budgets", "[{flops: 1e12}]", *several) == 0
    assert (
        (tmp_path / "t" / "sweep.txt")
        .read_text()
        .startswith("torchrun --nproc_per_node=4 -m lit_pretrain fit --config ")
    )


def test_the_slurm_script_makes_each_run(config: str, pretend: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("srun", '"$@"'),
        ("python", f'exec {sys.executable} {tmp_path / "pretended.py"} "$5"'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    options = [
        *("--slurm.partition", "gpu"),
        *("--slurm.environment", f"export PATH={tmp_path / 'bin'}:$PATH"),
        "--jobs",
        "2",
    ]
    assert (
        sweep(config, "--engine", "slurm", *options, "--slurm.sbatch", '{"account": "mine"}') == 0
    )
    script = (pretend / "sweep.sbatch").read_text()
    for option in (
        "array=0-2%2",
        "partition=gpu",
        "account=mine",
        "signal=USR1@120",
        "ntasks-per-node=1",
        f"output={pretend}/logs/%A_%a.log",
    ):
        assert f"#SBATCH --{option}\n" in script
    for task in range(3):
        done = subprocess.run(
            ["bash", str(pretend / "sweep.sbatch")],
            env=os.environ | {"SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert made(pretend) == NAMES
    assert sweep(config, "--engine", "slurm") == 0
    assert (
        pretend / "sweep.sbatch"
    ).read_text() == script  # nothing is missing, nothing is written


def test_no_character_of_a_path_is_read_by_the_shell(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a sweep and the current folder may hold whatever a file's name may."""
    strange = """$(touch x)`touch x`'"!#%&()*,;<=>?[]^{|}~ \\ $HOME -é"""
    here, out = tmp_path / strange, tmp_path / f"out{strange}"
    (tmp_path / "bin").mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "bin" / "srun").write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "$@"\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    environment = f"export PATH={tmp_path / 'bin'}:$PATH"
    options = ["--engine=slurm", f"--out={out}", f"--slurm.environment={environment}"]
    assert sweep(config, *options) == 0
    script = out / "sweep.sbatch"
    done = subprocess.run(
        ["bash", str(script)],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split("\0")
    assert words[0] == str(here)
    assert words[words.index("--config") + 1] == str(out / "configs" / f"{NAMES[0]}.yaml")
    assert not list(tmp_path.rglob("x"))
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    read = {tuple(shlex.split(line[8:])[0].split("=", 1)) for line in directives}
    assert ("--job-name", out.name) in read
    assert ("--output", f"{str(out).replace('%', '%%')}/logs/%A_%a.log") in read


def test_an_option_of_sbatch_stays_one_line(config: str, tmp_path: Path) -> None:
    for options in ('{"comment": "a\\nrm -rf x"}', '{"comment\\nrm": "a"}', '{"a b": "c"}'):
        done = sweep(
            config, "--engine=slurm", f"--out={tmp_path / 'o'}", f"--slurm.sbatch={options}"
        )
        assert done == 2
        assert not (tmp_path / "o" / "sweep.sbatch").exists()


REFUSED: dict[str, tuple[dict[str, object], list[str], str]] = {
    "no sizes": ({"sizes": {}}, [], "sizes: there are none"),
    "no budgets": ({"budgets": []}, [], "budgets: there are none"),
    "field": (
        {"sizes": {"w16": {"widht": 16}}},
        [],
        "sizes: w16 has 'widht', which no shape has. Did you mean 'width'?",
    ),
    "name": ({"sizes": {"a/b": {"width": 16}}}, [], "the name 'a/b' becomes a part of a folder's"),
    "shape": (
        {"sizes": {"w16": {"width": 15, "n_head": 2}}},
        [],
        "width=15 must be a multiple of n_head=2",
    ),
    "optimizer": (
        {"run": {}},
        [],
        "rule: olmo says AdamW's learning rate, but the optimizer is MuonAdamW",
    ),
    "length": ({"run": {"max_steps": 5}}, [], "run: max_steps is for the sweep to set"),
    "option of fit": ({"run": {"data": {"seq_length": 5}}}, [], "seq_length"),
    "option": ({}, ["--jobbs", "2"], "Did you mean '--jobs'?"),
    "jobs": ({}, ["--jobs", "0"], "jobs=0 must be at least 1"),
    "devices": (
        {"rule": "none", "run": {**CONFIG["run"], "trainer": {"devices": 3}}},
        [],
        "devices × data.seq_len = 3 × 32 = 96; the nearest is 4128, or take 2 or 4 devices",
    ),
    "factor": ({}, ["--lr_factor", "-1"], "lr_factor=-1 must be positive"),
    "base": ({"base": ["nowhere.yaml"]}, [], "base: nowhere.yaml does not exist"),
    "out": ({"out": "/dev/null/x"}, [], "out: /dev/null/x cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_cause(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, options, message = REFUSED[case]
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "out": str(tmp_path / "out"), **changes}))
    try:
        code = sweep(str(path), *options)
    except SystemExit as exit:  # of the parser
        code = int(str(exit.code))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_runs_then_a_table_of_them(
    dataset: Path, config: str, tmp_path: Path, run_cli: RunCli
) -> None:
    data = {**CONFIG["run"], "data": {**CONFIG["run"]["data"], "path": str(dataset)}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"run": data, "budgets": [{"flops": 1e9}]}))
    done = run_cli(
        "scaling",
        "sweep",
        "--config",
        config,
        "--config",
        tmp_path / "more.yaml",
        "--jobs",
        "2",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES[:2]:
        run = tmp_path / "out" / name
        last = [line for line in read_metrics(run) if "val/loss" in line][-1]
        assert last["progress/flops"] == pytest.approx(1e9, rel=0.5)
        assert (
            0
            < json.loads((run / "provenance.json").read_text())["unique_tokens"]
            <= last["progress/tokens"]
        )
        assert (run / "summary.md").is_file()
    assert "torch" not in done.stderr
