"""Two gloo ranks on a CPU, through the real command line: the same losses as one process, and
checkpoints that change hands.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from lit_pretrain.checkpoint.digests import DIGESTS, damage
from lit_pretrain.checkpoint.weights import read_average
from lit_pretrain.files import read_sealed_json
from lit_pretrain.report.run_folder import read_metrics

ROOT = Path(__file__).parents[1]
# AdamW in fp32: Muon's bf16 orthogonalisation would amplify the rounding of another order of sums.
BASE = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64", "--model.compile=off",
    "--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=0.003", "--data.seq_len=32",
    "--data.global_batch_tokens=512",
    "--data.val_tokens=512", "--max_steps=8", "--log_every=1", "--validate_every=4",
    "--checkpoint_every=4", "--sample_prompts=[]",
    "--trainer.precision=32-true", "--trainer.accelerator=cpu", "--model.ema_half_life=2048",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--data.micro_batch_size=4"]
ONE = ["--data.micro_batch_size=8"]

CALLBACKS = """
import os, signal
import lightning as L
from lit_pretrain.errors import UserError

class Act(L.Callback):
    def __init__(self, what: str, rank: int, step: int = 5) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_train_batch_start(self, trainer, *args) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            if self.what == "error":
                raise RuntimeError(f"cosmic ray on rank {self.rank}")
            if self.what == "mistake":
                raise UserError(f"a mistake that only rank {self.rank} sees")
            if self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)

class Leap(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            for group in optimizer.param_groups:
                group["lr"] *= 1e5
"""


def start(dataset: Path, runs: Path, name: str, *extra: str) -> "subprocess.Popen[str]":
    (runs / "acting.py").write_text(CALLBACKS)
    places = {"--data.path": dataset, "--runs": runs, "--name": name}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "lit_pretrain",
        "fit",
        *BASE,
        *(f"{key}={value}" for key, value in places.items()),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(runs)]),
    }
    return subprocess.Popen(
        [*command, *extra],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 240) -> tuple[int, str]:
    """Exit code of the first process and the output of all; every process of the run must have
    ended in time.
    """
    try:
        output, _ = process.communicate(
            timeout=seconds
        )  # ends when the last process closes the pipe
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def fit(dataset: Path, runs: Path, name: str, *extra: str) -> str:
    code, output = finish(start(dataset, runs, name, *extra))
    assert code == 0, output
    return output


def test_the_readme_s_line_for_two_devices(dataset: Path, tmp_path: Path) -> None:
    """The batch is that of the config; one device goes on with it and reads the same samples."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^lit_pretrain (fit .*) --name two-ranks", readme, flags=re.M)
    small = [option for option in BASE if not option.startswith(("--data.", "--max_steps"))]
    options = [*small, "--max_steps=4", "--checkpoint_every=2", "--data.val_tokens=4096"]
    places = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=two"]
    python = [sys.executable, "-W", "ignore", "-m", "lit_pretrain"]
    command = [*python, *shlex.split(line), *options, *places]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def go(*extra: str) -> str:
        process = subprocess.Popen(
            [*command, *extra], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        code, output = finish(process)
        assert code == 0, output
        return output

    output = go()
    assert "4,096 tokens a step = 2 devices × 4 rows × 512 tokens | " in output
    said = "a step of 8 rows leaves 4 to each of 2 devices"
    assert output.count(f"data.micro_batch_size lowered from 8 to 4: {said}") == 1
    saved = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["data"]["micro_batch_size"] == 4
    found = figures(tmp_path / "two")
    assert len(found) == 5
    (tmp_path / "two" / "checkpoints" / "step=00000004.ckpt").unlink()
    again = go("--trainer.devices=1", "--resume=auto")
    assert "4,096 tokens a step = 1 device × 8 rows × 512 tokens | " in again
    assert "lowered" not in again
    assert figures(tmp_path / "two") == pytest.approx(found, abs=1e-5)


def act(what: str, rank: int) -> list[str]:
    return [
        "--trainer.callbacks+=acting.Act",
        f"--trainer.callbacks.what={what}",
        f"--trainer.callbacks.rank={rank}",
    ]


def figures(run: Path) -> list[float]:
    return [m.get("train/loss", m.get("val/loss")) for m in read_metrics(run)]


def check_average(run: Path, other: Path) -> None:
    """Whoever has trained and saved, the moving averages of two runs at their ends agree."""
    found, expected = (read_average(r / "checkpoints" / "step=00000008.ckpt") for r in (run, other))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4)


def mixture(run: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in m.items() if k.startswith(("mixture/", "data/"))}
        for m in read_metrics(run)
    ]


@pytest.fixture(scope="module")
def one(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("ranks")
    fit(dataset, runs, "one", *ONE)
    return runs


SHARDED = ["--trainer.strategy=fsdp", "--sharded_checkpoints=true"]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="ddp", marks=pytest.mark.slow),
        pytest.param(["--trainer.strategy=fsdp"], id="fsdp", marks=pytest.mark.slow),
        pytest.param(SHARDED, id="fsdp-sharded"),
        pytest.param(
            ["--parallel.dp_replicate=2", "--trainer.devices=4", "--sharded_checkpoints=true"],
            id="hsdp",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--parallel.tp=2", "--sharded_checkpoints=true"], id="tp", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--parallel.tp=2", "--trainer.devices=4"], id="fsdp-tp", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--parallel.cp=2", "--sharded_checkpoints=true"], id="cp", marks=pytest.mark.slow
        ),
    ],
)
def test_two_ranks_equal_one_and_hand_over(
    dataset: Path, one: Path, extra: list[str], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    output = fit(dataset, one, name, *TWO, *extra)
    assert not any(alarm in output for alarm in ("sync_dist", "drop_last", "broadcast_buffers")), (
        output
    )  # the libraries', and false
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)
    assert mixture(one / name) == mixture(one / "one")  # the same samples in every step
    last = one / name / "checkpoints" / "step=00000008.ckpt"
    assert last.is_dir() == ("--sharded_checkpoints=true" in extra)
    assert damage(last) is None
    check_average(one / name, one / "one")
    if last.is_dir():  # every rank has hashed what it wrote
        files = read_sealed_json(last / DIGESTS)["files"]
        assert set(files) == {path.name for path in last.iterdir()} - {DIGESTS}
        ranks = 4 if "--trainer.devices=4" in extra else 2
        assert len([name for name in files if name.endswith(".distcp")]) == ranks
    # The middle one remains; one process goes on from what two have saved.
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    fit(dataset, one, name, *ONE, "--resume=auto")
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)
    assert last.is_file()
    check_average(one / name, one / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [pytest.param([], id="ddp"), pytest.param(SHARDED, id="fsdp-sharded")]
)
def test_compiled_two_ranks_equal_one_that_is_not(
    dataset: Path, one: Path, extra: list[str], request: pytest.FixtureRequest
) -> None:
    name = f"compiled-{request.node.callspec.id}"
    output = fit(dataset, one, name, *TWO, *extra, "--model.compile=on")
    assert "compile: off" not in output
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)
    assert figures(one / name) != figures(
        one / "one"
    )  # a compiler rounds in its own way; equal to the last bit would mean it was not at work


@pytest.mark.parametrize(
    ("extra", "again"),
    [
        pytest.param([], [], id="ddp", marks=pytest.mark.slow),
        pytest.param(["--trainer.strategy=fsdp"], SHARDED, id="fsdp", marks=pytest.mark.slow),
        pytest.param(
            [*SHARDED, "--async_checkpoints=true"], ["--trainer.strategy=fsdp"], id="fsdp-sharded"
        ),
        pytest.param(
            ["--parallel.tp=2", "--sharded_checkpoints=true"],
            ["--parallel.cp=2"],
            id="tp-then-cp",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_ranks_go_on_from_one_and_then_from_two(
    dataset: Path, one: Path, extra: list[str], again: list[str], request: pytest.FixtureRequest
) -> None:
    name = f"from-one-{request.node.callspec.id}"
    shutil.copytree(one / "one", one / name)
    (one / name / "checkpoints" / "step=00000008.ckpt").unlink()
    fit(dataset, one, name, *TWO, *extra, "--resume=auto", "--checkpoint_every=6")
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)
    last = one / name / "checkpoints" / "step=00000008.ckpt"
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    assert (one / name / "checkpoints" / "step=00000006.ckpt").is_dir() == (
        "--sharded_checkpoints=true" in extra
    )
    fit(dataset, one, name, *TWO, *again, "--resume=auto")
    assert figures(one / name) == pytest.approx(figures(one / "one"), abs=1e-5)
    check_average(one / name, one / "one")


@pytest.mark.slow
def test_two_ranks_leave_steps_out_as_one_does(dataset: Path, one: Path) -> None:
    """They go back to an older checkpoint together, and hand over to one that knows of no skips."""
    for name in ("skip-one", "skip-two"):
        shutil.copytree(one / "one", one / name)
    again = ("--resume=auto", "--checkpoint_every=6")
    fit(dataset, one, "skip-one", *ONE, *again, "--skip_steps=5:6")
    said = fit(dataset, one, "skip-two", *TWO, *again, "--skip_steps=5:6")
    assert said.count("the run goes back") == 1
    assert (one / "skip-two" / "abandoned" / "step=00000008.ckpt").exists()
    (one / "skip-two" / "checkpoints" / "step=00000008.ckpt").unlink()
    fit(dataset, one, "skip-two", *ONE, *again)
    assert figures(one / "skip-two") == pytest.approx(figures(one / "skip-one"), abs=1e-5)
    assert figures(one / "skip-two") != pytest.approx(figures(one / "one"), abs=1e-5)


@pytest.mark.slow
def test_a_signal_to_the_parent_saves_once_and_ends_all(dataset: Path, tmp_path: Path) -> None:
    process = start(
        dataset,
        tmp_path,
        "run",
        *TWO,
        "--trainer.precision=bf16-mixed",
        "--max_steps=2000",
        "--checkpoint_every=0",
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if metrics.exists() and metrics.stat().st_size:  # the first step is over
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    assert output.count("stopped by SIGTERM") == 1
    assert "Traceback" not in output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"saved {saved}" in output
    assert saved.name == f"step={read_metrics(tmp_path / 'run')[-1]['step']:08d}.ckpt"


def test_a_signal_to_one_rank_stops_all_together(dataset: Path, tmp_path: Path) -> None:
    code, output = finish(
        start(
            dataset,
            tmp_path,
            "run",
            *TWO,
            "--trainer.precision=bf16-true",
            "--model.ema_half_life=null",  # an average in bf16 would lose small steps
            "--trainer.strategy=fsdp",
            *act("signal", 1),
        )
    )
    assert code == 75, output
    assert "stopped by SIGTERM after step 6" in output
    assert (tmp_path / "run" / "checkpoints" / "step=00000006.ckpt").exists()


@pytest.mark.parametrize(
    ("what", "message", "rank"),
    [
        pytest.param("error", "cosmic ray on rank {}", 0, marks=pytest.mark.slow),
        pytest.param("error", "cosmic ray on rank {}", 1, marks=pytest.mark.slow),
        ("mistake", "a mistake that only rank {} sees", 0),
        pytest.param("mistake", "a mistake that only rank {} sees", 1, marks=pytest.mark.slow),
    ],
)
def test_a_failure_of_one_rank_ends_the_run(
    dataset: Path, tmp_path: Path, what: str, message: str, rank: int
) -> None:
    """No process is left waiting in a collective, and the reason is said once."""
    code, output = finish(start(dataset, tmp_path, "run", *TWO, *act(what, rank)), seconds=90)
    assert code not in (0, 75), output
    assert message.format(rank) in output
    assert (tmp_path / "run" / "checkpoints" / "step=00000004.ckpt").exists()
    if what == "mistake":
        assert output.count("error: ") == 1
        assert "Traceback" not in output


ROLLOUT = """
model:
  objective: {class_path: lit_pretrain.objective.GRPO, init_args: {beta: 0.02}}
  rollout:
    rewards:
      digit: {path: Format, options: {pattern: "[0-9]", whole: false}}
      short: {path: LengthPenalty, options: {free_tokens: 2, max_tokens: 8}}
    max_completion_tokens: 8
data:
  class_path: lit_pretrain.data.PromptData
  init_args:
    sources: {sums: {task: {name: addition, digits: 1, rows: 100}}}
    template: plain
    seq_len: 32
    group_size: 4
    updates: 2
    global_batch_rows: 8
    validation: 0.2
"""


def test_rollouts_on_two_ranks_are_those_of_one(dataset: Path, tmp_path: Path) -> None:
    """The same answers, advantages and losses; and one process goes on in the middle of a
    rollout of two.
    """
    (tmp_path / "rollout.yaml").write_text(ROLLOUT)
    options = [
        *(option for option in BASE if not option.startswith("--data.")),
        f"--config={tmp_path / 'rollout.yaml'}",
        f"--data.init_args.tokenizer={dataset}", "--max_steps=5", "--checkpoint_every=3",
        "--validate_every=0",
    ]  # fmt: skip

    def go(name: str, *extra: str) -> list[dict[str, float]]:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "lit_pretrain",
            "fit",
            *options,
            f"--runs={tmp_path}",
            f"--name={name}",
            *extra,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        code, output = finish(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        assert code == 0, output
        lines = read_metrics(tmp_path / name)
        keep = (
            "train/loss",
            "train/reward",
            "train/rewards/short",
            "train/entropy",
            "train/kl",
            "train/clip_ratio",
            "train/grad_norm",
        )
        return [
            (
                {key: line[key] for key in keep}
                if "train/loss" in line
                else {"val/reward": line["val/reward"]}
            )
            for line in lines
        ]

    one = go("one", "--data.init_args.micro_batch_size=4")
    two = go("two", "--data.init_args.micro_batch_size=2", "--trainer.devices=2")
    assert len(one) == len(two) == 6
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert any(line.get("train/reward") for line in one)
    (tmp_path / "two" / "checkpoints" / "step=00000005.ckpt").unlink()
    again = go("two", "--data.init_args.micro_batch_size=8", "--resume=auto")
    for a, b in zip(again, one, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.slow
def test_two_ranks_go_back_together_as_one_does(dataset: Path, tmp_path: Path) -> None:
    """The processes stay the same, and the second time they leave the update out, not the rows."""
    extra = [
        *("--max_steps=26", "--validate_every=0", "--checkpoint_every=4"),
        *("--guard.action=rewind", "--guard.window=16", "--guard.threshold=6", "--guard.margin=2"),
        "--trainer.callbacks+={class_path: acting.Leap, init_args: {step: 20}}",
    ]
    for name, ranks in (("one", ONE), ("two", TWO)):
        said = fit(dataset, tmp_path, name, *ranks, *extra)
        assert said.count("the run goes back to step 16 and leaves out the rows") == 1
        assert said.count("the run goes back to step 20 and leaves out the updates") == 1
    assert figures(tmp_path / "two") == pytest.approx(figures(tmp_path / "one"), abs=1e-3)
