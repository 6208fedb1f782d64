"""A stopped run goes on as if it had never stopped: the same losses, bit for bit, through the
real command line.
"""

import dataclasses
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.checkpoints import PlainCheckpointIO
from lit_pretrain.checkpoint.weights import write_checkpoint
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.plain_data import read_config
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.stage.origin import can_compile
from lit_pretrain.stage.stage import Stage

ROOT = Path(__file__).parents[1]
STEPS = 14
BASE = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64", "--model.net.dropout=0.1",
    "--model.compile=off", "--data.seq_len=32", "--data.global_batch_tokens=256",
    "--data.micro_batch_size=8", "--data.val_tokens=256",
    f"--max_steps={STEPS}", "--log_every=1", "--validate_every=5", "--checkpoint_every=4",
    "--keep_checkpoints=3", "--sample_prompts=[]",
    "--trainer.accelerator=cpu",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def options(dataset: Path, runs: Path, name: str, *extra: str) -> list[str]:
    return ["fit", *BASE, f"--data.path={dataset}", f"--runs={runs}", f"--name={name}", *extra]


def losses(run: Path) -> list[tuple[Any, ...]]:
    return [
        (m["step"], m.get("train/loss"), m.get("train/grad_norm"), m.get("val/loss"))
        for m in read_metrics(run)
    ]


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and the hash of its content."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


@contextmanager
def at_step(step: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something in the middle of the training step that follows so many steps."""
    plain = Stage.training_step

    @functools.wraps(plain)
    def training_step(self: Stage, batch: Any, batch_idx: int) -> Any:
        if self.global_step == step:
            action()
        return plain(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "training_step", training_step)
        yield


@contextmanager
def read_rows() -> Iterator[dict[int, list[tuple[int, ...]]]]:
    """The rows that every training step reads: number and tokens, by step, in the order of the
    numbers.
    """
    plain, found = Stage.training_step, {}

    @functools.wraps(plain)
    def training_step(self: Stage, batch: Any, batch_idx: int) -> Any:
        rows = [
            (n, *tokens)
            for micro in batch
            for n, tokens in zip(micro.index_B.tolist(), micro.tokens_BT.tolist(), strict=True)
        ]
        found[self.global_step] = sorted(rows)
        return plain(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "training_step", training_step)
        yield found


def start(arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "lit_pretrain", *arguments],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # a process group of its own, as a scheduler's job is
        )


def stop_at(process: "subprocess.Popen[bytes]", run: Path, step: int, number: int) -> int:
    """Signal every process of a run when it has written a step; its exit code."""
    end = time.time() + 120
    while time.time() < end and process.poll() is None:
        file = run / "metrics.jsonl"
        if file.exists() and f'{{"step": {step},' in file.read_text():
            os.killpg(process.pid, number)
            break
        time.sleep(0.005)
    return process.wait(120)


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted runs in one process: `one` with one micro-batch a step, `four` with four."""
    runs = tmp_path_factory.mktemp("whole")
    assert main(options(dataset, runs, "one")) == 0
    assert main(options(dataset, runs, "four", "--data.micro_batch_size=2")) == 0
    assert losses(runs / "one") != losses(
        runs / "four"
    )  # another order of sums: the comparisons below can fail
    for a, b in zip(read_metrics(runs / "one"), read_metrics(runs / "four"), strict=True):
        assert {k: v for k, v in a.items() if k.startswith("mixture/")} == {
            k: v for k, v in b.items() if k.startswith("mixture/")
        }
    return runs


# ---------------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize(
    ("number", "code", "reference", "extra"),
    [
        (signal.SIGTERM, 75, "four", ["--data.micro_batch_size=2", "--data.num_workers=2"]),
        (signal.SIGKILL, -signal.SIGKILL, "one", []),
    ],
    ids=["SIGTERM-workers-accumulation", "SIGKILL"],
)
def test_a_job_stopped_by_a_signal_equals_an_uninterrupted_one(
    dataset: Path,
    tmp_path: Path,
    whole: Path,
    number: int,
    code: int,
    reference: str,
    extra: list[str],
) -> None:
    arguments = options(
        dataset, tmp_path, "run", "--resume=auto", *extra
    )  # starts the run, then goes on with it
    stopped = start(arguments, tmp_path / "log")
    assert stop_at(stopped, tmp_path / "run", 6, number) == code, (tmp_path / "log").read_text()
    if code == 75:
        assert "go on with: lit_pretrain fit --config " in (tmp_path / "log").read_text()
        assert "Traceback" not in (tmp_path / "log").read_text()
    assert main([*arguments, "--data.num_workers=0"]) == 0
    assert losses(tmp_path / "run") == losses(whole / reference)


# 4: a validation follows the step in which the signal comes; 7: a checkpoint is due anyway
@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, 6),
        (signal.SIGUSR1, 4),
        pytest.param(signal.SIGTERM, 7, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_at_the_next_step_boundary(
    dataset: Path,
    tmp_path: Path,
    whole: Path,
    number: int,
    step: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = options(dataset, tmp_path, "run", "--resume=auto")
    with at_step(step, lambda: os.kill(os.getpid(), number)):
        assert main(arguments) == 75
    saved = tmp_path / "run" / "checkpoints" / f"step={step + 1:08d}.ckpt"
    assert (
        f"stopped by {signal.Signals(number).name} after step {step + 1}; saved {saved}"
        in capsys.readouterr().err
    )
    assert saved.exists()
    # A validation that follows the step is left to the next attempt.
    trained = [
        line
        for line in losses(whole / "one")
        if line[0] <= step + 1 and (line[0] <= step or line[1] is not None)
    ]
    assert losses(tmp_path / "run") == trained
    assert main(arguments) == 0
    assert losses(tmp_path / "run") == losses(whole / "one")


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="due-anyway"),
        pytest.param(["--validate_every=0"], id="only-last"),
        pytest.param(["--validate_every=9"], id="uneven", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_the_last_step_leaves_the_last_validation_to_the_next_attempt(
    dataset: Path, tmp_path: Path, whole: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(dataset, tmp_path, "run", "--resume=auto", *extra)
    with at_step(STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(arguments) == 75
    assert f"after step {STEPS}; saved " in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.md").exists()
    assert main(arguments) == 0
    trained = [line for line in losses(whole / "one") if line[1] is not None]
    assert [line for line in losses(tmp_path / "run") if line[1] is not None] == trained
    assert losses(tmp_path / "run")[-1] == losses(whole / "one")[-1]
    assert (tmp_path / "run" / "summary.md").exists()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_a_validation_is_left_at_a_signal_and_done_once_by_the_next_attempt(
    dataset: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one that is killed right after it."""
    arguments = options(dataset, tmp_path, "run", "--resume=auto")
    plain, asked = Stage.validation_step, []

    def validation_step(self: Stage, batch: Any, batch_idx: int) -> None:
        asked.append(self.global_step)
        os.kill(os.getpid(), signal.SIGTERM)
        plain(self, batch, batch_idx)

    monkeypatch.setattr(Stage, "validation_step", validation_step)
    assert main([*arguments, "--data.micro_batch_size=4"]) == 75
    assert asked == [5]  # of two batches
    monkeypatch.undo()

    def fail() -> None:
        raise RuntimeError("cosmic ray")

    with at_step(5, fail), pytest.raises(RuntimeError, match="cosmic ray"):
        main(arguments)
    assert main(arguments) == 0
    assert [line[0] for line in losses(tmp_path / "run")] == [
        line[0] for line in losses(whole / "one")
    ]


@pytest.mark.parametrize(
    "extra",
    [[], ["--data.micro_batch_size=2", "--data.num_workers=1"]],
    ids=["plain", "worker-accumulation"],
)
def test_a_run_that_failed_goes_on_from_its_last_checkpoint(
    dataset: Path, tmp_path: Path, whole: Path, extra: list[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("cosmic ray")

    arguments = options(dataset, tmp_path, "run", "--resume=auto", *extra)
    with at_step(11, fail), pytest.raises(RuntimeError, match="cosmic ray"):
        main(arguments)
    assert main(arguments) == 0
    assert losses(tmp_path / "run") == losses(whole / ("four" if extra else "one"))


def test_a_run_killed_during_a_validation_validates_again(
    dataset: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = options(dataset, tmp_path, "run", "--resume=auto", "--checkpoint_every=5")
    plain = Stage.validation_step

    def validation_step(self: Stage, batch: Any, batch_idx: int) -> None:
        if self.global_step == STEPS:
            raise RuntimeError("killed")
        plain(self, batch, batch_idx)

    monkeypatch.setattr(Stage, "validation_step", validation_step)
    with pytest.raises(RuntimeError, match="killed"):
        main(arguments)
    monkeypatch.undo()
    assert main(arguments) == 0
    assert losses(tmp_path / "run") == losses(whole / "one")
    assert (tmp_path / "run" / "summary.md").exists()


def test_windows_of_several_steps_are_the_same_after_a_stop_in_their_middle(
    dataset: Path, tmp_path: Path
) -> None:
    windows = ["--log_every=6", "--validate_every=0"]
    assert main(options(dataset, tmp_path, "whole", *windows)) == 0
    arguments = options(dataset, tmp_path, "run", "--resume=auto", *windows)
    with at_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(arguments) == 75
    assert main(arguments) == 0

    def figures(run: Path) -> list[dict[str, float]]:
        measured = ("throughput/", "time/")
        return [
            {k: v for k, v in line.items() if not k.startswith(measured)}
            for line in read_metrics(run)
        ]

    assert [line["step"] for line in figures(tmp_path / "run")] == [6, 12, 14, 14]
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_another_micro_batch_reads_the_same_samples(
    dataset: Path, tmp_path: Path, whole: Path
) -> None:
    with read_rows() as before, at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(options(dataset, tmp_path, "run")) == 75
    with read_rows() as after:
        assert (
            main(
                options(
                    dataset,
                    tmp_path,
                    "run",
                    "--resume=auto",
                    "--data.micro_batch_size=4",
                    "--model.net.dropout=0.1",
                )
            )
            == 0
        )
    with read_rows() as uninterrupted:
        assert main(options(dataset, tmp_path, "whole")) == 0
    assert [sorted(before), sorted(after)] == [list(range(7)), list(range(7, STEPS))]
    assert before | after == uninterrupted
    assert [row[0] for step in range(STEPS) for row in uninterrupted[step]] == list(
        range(8 * STEPS)
    )
    for a, b in zip(read_metrics(tmp_path / "run"), read_metrics(whole / "one"), strict=True):
        assert {k: v for k, v in a.items() if k.startswith("mixture/")} == {
            k: v for k, v in b.items() if k.startswith("mixture/")
        }
        if "train/loss" in a:
            assert a["train/loss"] == pytest.approx(
                b["train/loss"], rel=0.02
            )  # other dropout masks


def test_across_the_end_of_an_epoch_and_past_a_torn_checkpoint(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # `code` has 593 rows: at full weight 14 steps of 256 rows read it six times.
    extra = [
        "--data.weights={code: 1}",
        "--data.global_batch_tokens=8192",
        "--data.micro_batch_size=64",
    ]
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


def test_two_loader_workers_go_on_across_the_end_of_an_epoch(dataset: Path, tmp_path: Path) -> None:
    """Stopped with two workers and resumed with two, in the second epoch; the reference reads
    in its own process.
    """
    extra = [
        "--data.weights={code: 1}",
        "--data.global_batch_tokens=8192",
        "--data.micro_batch_size=64",
        "--max_steps=6",
    ]
    with read_rows() as uninterrupted:
        assert main(options(dataset, tmp_path, "whole", *extra)) == 0
    arguments = options(dataset, tmp_path, "run", "--resume=auto", *extra, "--data.num_workers=2")
    with read_rows() as before, at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(arguments) == 75
    with read_rows() as after:
        assert main(arguments) == 0
    assert [sorted(before), sorted(after)] == [[0, 1, 2], [3, 4, 5]]
    assert before | after == uninterrupted
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    text = [row[1:] for step in range(6) for row in uninterrupted[step]]
    assert len(set(text)) < len(
        text
    )  # rows came again: an epoch has ended (before the stop: 593 rows, 3 × 256 read)


@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_the_network_of_the_quickstart_goes_on_exactly(
    dataset: Path, tmp_path: Path, compile: str
) -> None:
    """Value embeddings, residual scalars, squared ReLU, norms without gains and Muon; with
    dropout and every part of a recipe that is off by default; also compiled.
    """
    if compile == "on" and (reason := can_compile(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    config = ["--config", str(ROOT / "configs" / "pretrain" / "quickstart.yaml")]
    extra = [
        "--model.net.max_seq_len=64", "--model.net.ffn_width=null", f"--model.compile={compile}",
        "--data.micro_batch_size=4",
        "--max_steps=8", "--max_tokens=null",
        "--model.net.bigram_rows=64", "--model.net.smear=true",
        "--model.net.qk_scale=1.2", "--model.net.embedding_std=0.8",
        "--model.net.ffn_in_scale=0.4", "--model.net.residual_scale_init=[1.15,1.05]",
        "--model.net.embedding_scale_init=[0.2,0.05]", "--model.net.value_gate_channels=12",
        "--model.net.value_gate_scale=3", "--model.net.value_gate_init=0.02",
        "--model.optimizer.embedding_scalar_lr=0.5", "--model.optimizer.update_beta2=0.9",
        "--model.optimizer.role_betas={embedding: [0.8, 0.995]}",
        "--model.optimizer.momentum_warmup=50%", "--model.optimizer.momentum_cooldown=25%",
        "--model.optimizer.weight_decay=0.1", "--model.optimizer.weight_decay_schedule=cosine",
    ]  # fmt: skip

    def arguments(name: str) -> list[str]:
        return ["fit", *config, *options(dataset, tmp_path, name)[1:], *extra, "--resume=auto"]

    assert main(arguments("whole")) == 0
    net = (tmp_path / "whole" / "config.yaml").read_text()
    for feature in (
        "value_embeddings: alternate",
        "residual_scalars: true",
        "activation: relu2",
        "norm_weight: false",
        "dropout: 0.1",
    ):
        assert feature in net
    assert "MuonAdamW" in net
    for step in (1, 5):
        with at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            assert main(arguments("run")) == 75
    assert main(arguments("run")) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len({line[1] for line in losses(tmp_path / "run")}) > 6


def test_across_a_phase_and_a_source_that_leaves(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 8 rows a step: 0.05 epochs of `code`, 593 rows, are 29; at half of the samples it leaves in
    # its eighth step.
    phases = (
        "[{from_tokens: 0, weights: {story: 1, sums: 3}}, {from_tokens: 1100, weights: {code: 1,"
        " sums: 1}}]"
    )
    extra = [f"--data.phases={phases}", "--data.max_epochs={code: 0.05}", "--data.cycle=64"]
    assert main(options(dataset, tmp_path, "whole", *extra)) == 0
    printed = capsys.readouterr().out
    assert "from 0  from 1,024   share  epochs" in printed  # 1,100 tokens are 4.3 steps of 256
    assert "code has been read as often as data.max_epochs allows after" in printed
    arguments = options(dataset, tmp_path, "run", "--resume=auto", *extra)
    for step in (3, 7, 10):
        with at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            assert main(arguments) == 75
    assert main(arguments) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    capsys.readouterr()
    assert (
        main(["inspect", "order", str(tmp_path / "run"), f"--steps={STEPS}", "--json_lines=true"])
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    code = [row for row in rows if row["source"] == "code"]
    assert len(code) == len({row["row"] for row in code}) == 29
    assert code[0]["step"] == 4
    assert {row["source"] for row in rows if row["step"] > code[-1]["step"]} == {"sums"}
    config = [
        "fit",
        "--config",
        str(tmp_path / "run" / "config.yaml"),
        f"--runs={tmp_path}",
        "--name=again",
        "--resume=never",
    ]
    assert main(config) == 0  # the saved config says it all
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    capsys.readouterr()
    assert main(["validate", "--run", str(tmp_path / "run")]) == 0
    assert "code" in capsys.readouterr().out
    by_step = {m["step"]: m for m in read_metrics(tmp_path / "run") if "train/loss" in m}
    assert [by_step[step]["mixture/code"] > 0 for step in (4, 5, code[-1]["step"] + 1, STEPS)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_run_may_end_with_its_text_and_not_go_on(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 3 % of 593 rows are 17: two steps of 8.
    extra = [
        "--data.weights={code: 1}",
        "--data.max_epochs=0.03",
        "--checkpoint_every=1",
        "--data.num_workers=1",
    ]
    assert main(options(dataset, tmp_path, "run", *extra)) == 2
    error = capsys.readouterr().err
    assert "after 17 no source of its mixture may be read any more" in error
    assert "The longest run is max_steps=2, max_tokens=512" in error
    assert not (tmp_path / "run").exists()
    assert main(options(dataset, tmp_path, "run", *extra, "--max_steps=2")) == 0
    assert [line[0] for line in losses(tmp_path / "run")] == [1, 2, 2]


# ---------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def begun(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("begun")
    with at_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(options(dataset, runs, "run")) == 75
    return runs


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("--data.seed=5", "data.seed: the checkpoint has 0, this run 5"),
        ("--data.seq_len=16", "data.seq_len: the checkpoint has 32, this run 16"),
        (
            "--data.global_batch_tokens=512",
            "data.global_batch_tokens: the checkpoint has 256, this run 512",
        ),
        ("--data.weights={code: 1}", "data.weights.code: the checkpoint has None, this run 1"),
        ("--data.temperature=2", "data.temperature: the checkpoint has None, this run 2.0"),
        (
            "--data.max_epochs={code: 3}",
            "data.max_epochs.code: the checkpoint has None, this run 3.0",
        ),
        (
            "--data.phases=[{from_tokens: 9999, weights: {code: 1}}]",
            "data.phases: the checkpoint has None, this run [{'from_tokens': 9999.0,",
        ),
        ("--model.net.width=64", "model.net.width: the checkpoint has 32, this run 64"),
        ("--model.net.dropout=0.2", "model.net.dropout: the checkpoint has 0.1, this run 0.2"),
        ("--model.seed=3", "model.seed: the checkpoint has 0, this run 3"),
        ("--model.schedule.kind=constant", "this run 'constant'"),
        ("--model.optimizer.matrix_lr=0.5", "matrix_lr: the checkpoint has"),
        ("--max_steps=20", "max_steps: the checkpoint has 14, this run 20"),
        ("--trainer.precision=64-true", "this run '64-true'"),
    ],
)
def test_resume_refuses_other_settings_and_names_both_values(
    dataset: Path, begun: Path, change: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(begun)
    assert main(options(dataset, begun, "run", "--resume=auto", change)) == 2
    error = capsys.readouterr().err
    assert "cannot resume from" in error
    assert field in error
    assert tree(begun) == before


def test_resume_refuses_other_data(
    dataset: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    manifest = Manifest.load(other)
    code = manifest.sources["code"]
    train = dataclasses.replace(code.splits["train"], chunks=code.splits["train"].chunks[:1])
    changed = dataclasses.replace(code, splits={**code.splits, "train": train})
    manifest = dataclasses.replace(manifest, sources={**manifest.sources, "code": changed})
    (other / "manifest.json").write_text(manifest.dump())
    assert main(options(other, begun, "run", "--resume=auto")) == 2
    assert (
        f"data.manifest: the checkpoint has '{Manifest.load(dataset).hash}', this run"
        f" '{manifest.hash}'" in capsys.readouterr().err
    )
    moved = Path(
        shutil.copytree(dataset, tmp_path / "moved")
    )  # the same data in another place is the same data
    runs = Path(shutil.copytree(begun, tmp_path / "runs"))
    assert main(options(moved, runs, "run", "--resume=auto")) == 0


def test_a_new_run_does_not_overwrite(
    dataset: Path, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(begun)
    assert main(options(dataset, begun, "run")) == 2
    assert (
        "already holds a run; choose another --name, or go on with that run by --resume auto"
        in capsys.readouterr().err
    )
    assert main(options(dataset, begun, "run", f"--from={begun / 'run'}")) == 2
    assert main(options(dataset, begun, "run", f"--fork={begun / 'run'}")) == 2
    assert tree(begun) == before


def test_a_named_checkpoint_goes_on_in_its_own_run(
    dataset: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: Path
) -> None:
    runs = Path(shutil.copytree(begun, tmp_path / "runs"))
    shutil.copytree(runs / "run", runs / "victim")
    checkpoint = runs / "run" / "checkpoints" / "step=00000004.ckpt"
    before = tree(runs)
    assert main(options(dataset, runs, "victim", f"--resume={checkpoint}")) == 2
    assert "goes on with the run" in capsys.readouterr().err
    assert tree(runs) == before
    assert main(options(dataset, runs, "run", f"--resume={checkpoint}")) == 0
    assert losses(runs / "run") == losses(whole / "one")


def test_a_finished_run_says_so(
    dataset: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(whole)
    assert main(options(dataset, whole, "one", "--resume=auto")) == 0
    assert "one has made all of its 14 steps; nothing is left to do" in capsys.readouterr().out
    assert tree(whole) == before


def test_a_run_killed_before_its_summary_gets_one(
    dataset: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole / "one", tmp_path / "one"))
    page = (run / "summary.md").read_text().splitlines()
    (run / "summary.md").unlink()
    assert main(options(dataset, tmp_path, "one", "--resume=auto")) == 0
    assert "done: " in capsys.readouterr().out
    times = ("| time |", "| throughput", "| goodput", "1 device")
    assert [line for line in (run / "summary.md").read_text().splitlines() if line not in page] == [
        line
        for line in (run / "summary.md").read_text().splitlines()
        if line.startswith(times) and line not in page
    ]
    assert losses(run) == losses(whole / "one")


def test_a_run_may_be_made_longer_before_its_decay(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is then the run that it would have been with that length from the start. Which schedules
    allow it: tests/cli/train/test_run_place.py.
    """

    def length(steps: int) -> list[str]:
        schedule = ["--model.schedule.kind=wsd", "--model.schedule.decay=2 steps"]
        return [*schedule, f"--max_steps={steps}", "--validate_every=3", "--checkpoint_every=3"]

    assert main(options(dataset, tmp_path, "run", *length(6))) == 0
    longer = options(dataset, tmp_path, "run", *length(9), "--resume=auto")
    assert main(longer) == 2
    error = capsys.readouterr().err
    assert "max_steps: the checkpoint has 6, this run 9" in error
    assert "with schedule.kind constant, and with wsd before its decay" in error
    (tmp_path / "run" / "checkpoints" / "step=00000006.ckpt").unlink()
    assert main(longer) == 0
    assert main(options(dataset, tmp_path, "long", *length(9))) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "long")
    assert "step 9" in (tmp_path / "run" / "summary.md").read_text()
    assert read_config(tmp_path / "run" / "config.yaml")["max_steps"] == 9


def test_a_run_has_one_writer(
    dataset: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path(shutil.copytree(begun, tmp_path / "runs"))
    code = (
        "import sys, pathlib; from lit_pretrain.report.run_folder import RunLock;"
        "lock = RunLock(); lock.take(pathlib.Path(sys.argv[1])); print('locked', flush=True);"
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(runs / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    before = tree(runs)
    for resume in ("auto", "never"):
        assert main(options(dataset, runs, "run", f"--resume={resume}")) == 2
        error = capsys.readouterr().err
        assert f"is being written by process {other.pid} on" in error
    assert tree(runs) == before
    other.kill()
    other.wait()
    assert main(options(dataset, runs, "run", "--resume=auto")) == 0
    assert f"took over the lock of {runs / 'run'} from process {other.pid}" in (
        capsys.readouterr().err
    )
    assert not (runs / "run" / ".lock").exists()


def test_something_else_is_not_a_checkpoint(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    foreign = tmp_path / "run" / "checkpoints" / "step=00000003.ckpt"
    torch.save({"state_dict": {}}, foreign)
    assert main(options(dataset, tmp_path, "run", f"--resume={foreign}")) == 2
    assert "was not written by lit_pretrain" in capsys.readouterr().err
    assert main(options(dataset, tmp_path, "run", "--resume=nowhere")) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


# ---------------------------------------------------------------------- forks and children


def test_a_fork_goes_on_with_another_mixture(
    dataset: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every source is read on from where the run was: nothing twice, nothing left out."""
    fork = f"--fork={begun / 'run' / 'checkpoints' / 'step=00000008.ckpt'}"
    assert main(options(dataset, tmp_path, "fork", fork, "--data.weights={code: 1}")) == 2
    error = capsys.readouterr().err
    assert "its 8 steps were read in another one" in error
    assert "data.phases: [{from_tokens: 2048, weights: {...}}]" in error
    assert not (tmp_path / "fork").exists()
    phase = "--data.phases=[{from_tokens: 2048, weights: {code: 1}}]"
    assert main(options(dataset, tmp_path, "fork", fork, phase, "--resume=auto")) == 0
    lines = [m for m in read_metrics(tmp_path / "fork") if "train/loss" in m]
    assert [(m["step"], m["mixture/code"]) for m in lines] == [
        (step, 1.0) for step in range(9, STEPS + 1)
    ]
    capsys.readouterr()
    assert (
        main(["inspect", "order", str(tmp_path / "fork"), f"--steps={STEPS}", "--json_lines=true"])
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    code = [row["row"] for row in rows if row["source"] == "code"]
    assert len(code) == len(set(code)) > 6 * 8
    assert main(["inspect", "order", str(begun / "run"), "--steps=8", "--json_lines=true"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows[:64]


def test_a_fork_goes_on_with_another_schedule(
    dataset: Path,
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[list[int]]] = {}
    plain = Stage.training_step

    @functools.wraps(plain)
    def training_step(self: Stage, batch: Any, batch_idx: int) -> Any:
        run = Path(self.trainer.default_root_dir).name
        seen.setdefault(run, []).append([n for micro in batch for n in micro.index_B.tolist()])
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(Stage, "training_step", training_step)
    wsd = [
        "--model.schedule.kind=wsd",
        "--model.schedule.warmup=0",
        "--model.schedule.decay=1 steps",
    ]
    assert main(options(dataset, tmp_path, "stable", *wsd)) == 0
    fork = [*wsd, "--model.schedule.decay=6 steps", "--max_steps=12"]
    checkpoint = tmp_path / "stable" / "checkpoints" / "step=00000008.ckpt"
    before = tree(tmp_path / "stable")
    assert main(options(dataset, tmp_path, "fork", *fork, f"--fork={checkpoint}")) == 0
    assert tree(tmp_path / "stable") == before
    lines = [m for m in read_metrics(tmp_path / "fork") if "train/loss" in m]
    assert [m["step"] for m in lines] == [9, 10, 11, 12]
    assert [m["progress/tokens"] for m in lines] == [256 * m["step"] for m in lines]
    assert seen["fork"] == seen["stable"][8:12]  # the data order goes on
    # Step 9 reads the same samples with the same weights as in the stable run, but its update is
    # already on the new schedule.
    reference = {m["step"]: m for m in read_metrics(tmp_path / "stable") if "train/loss" in m}
    assert lines[0]["train/loss"] == reference[9]["train/loss"]
    rate = reference[9]["lr/matrix"]
    assert [m["lr/matrix"] for m in lines] == pytest.approx(
        [rate * (1 - done / 6) for done in (2, 3, 4, 5)]
    )
    facts = json.loads((tmp_path / "fork" / "provenance.json").read_text())
    assert facts["parent"] == str(checkpoint)
    # A fork is a run like others: it is resumed by its own settings.
    (tmp_path / "fork" / "checkpoints" / "step=00000012.ckpt").unlink()
    (tmp_path / "fork" / "checkpoints" / "best.json").unlink(missing_ok=True)
    assert (
        main(options(dataset, tmp_path, "fork", *fork, f"--fork={checkpoint}", "--resume=auto"))
        == 0
    )
    assert [m for m in read_metrics(tmp_path / "fork") if "train/loss" in m][-1][
        "train/loss"
    ] == lines[-1]["train/loss"]
    capsys.readouterr()
    assert (
        main(
            options(
                dataset, tmp_path, "other", *fork, f"--fork={checkpoint}", "--model.net.n_layer=3"
            )
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "cannot fork" in error
    assert "model.net.n_layer: the checkpoint has 2, this run 3" in error
    assert "decay" not in error.split("differ.")[1]  # what may differ is not blamed
    assert not (tmp_path / "other").exists()


def test_a_fork_goes_on_with_another_rate(
    dataset: Path, begun: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and moments are the checkpoint's; rates and settings the fork's, also when it is
    resumed itself.
    """
    checkpoint = begun / "run" / "checkpoints" / "step=00000008.ckpt"
    fork = [
        f"--fork={checkpoint}",
        "--model.optimizer.matrix_lr=0.01",
        "--model.optimizer.betas=[0.7,0.9]",
    ]
    arguments = options(dataset, tmp_path, "fork", *fork, "--resume=auto")
    with at_step(10, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(arguments) == 75
    said = capsys.readouterr().out
    assert f"of {checkpoint} it keeps weights, the optimizer's moments" in said
    assert "the optimizer's settings are those of this run" in said
    assert "matrix_lr: the checkpoint has 0.02, this run 0.01" in said
    assert main(arguments) == 0
    assert "it keeps" not in capsys.readouterr().out
    lines = [m for m in read_metrics(tmp_path / "fork") if "train/loss" in m]
    before = {m["step"]: m for m in read_metrics(whole / "one") if "train/loss" in m}
    assert [m["step"] for m in lines] == list(range(9, STEPS + 1))
    for line in lines:
        assert line["lr/matrix"] == pytest.approx(before[line["step"]]["lr/matrix"] / 2)
        assert line["lr/head"] == before[line["step"]]["lr/head"]
    assert lines[0]["train/loss"] == before[9]["train/loss"]
    assert lines[1]["train/loss"] != before[10]["train/loss"]
    last = torch.load(tmp_path / "fork" / "checkpoints" / "step=00000014.ckpt", weights_only=True)
    [optimizer] = last["optimizer_states"]
    groups = {group["role"]: group for group in optimizer["param_groups"]}
    assert groups["matrix"]["step"] == STEPS
    assert groups["head"]["betas"] == (0.7, 0.9)
    assert {float(s["step"]) for s in optimizer["state"].values() if "step" in s} == {STEPS}
    lineage = json.loads((tmp_path / "fork" / "lineage.json").read_text())
    assert len(lineage["stages"]) == 2  # however often it is resumed
    another = "--model.optimizer=lit_pretrain.optim.AdamW"
    assert main(options(dataset, tmp_path, "other", fork[0], another)) == 2
    assert "model.optimizer.class_path: the checkpoint has" in capsys.readouterr().err


def test_moments_must_be_those_of_the_optimizer(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adam = ["--model.optimizer=torch.optim.AdamW", "--max_steps=2"]
    assert main(options(dataset, tmp_path, "run", *adam)) == 0
    fork = [f"--fork={tmp_path / 'run'}", *adam, "--max_steps=3", "--model.optimizer.amsgrad=true"]
    assert main(options(dataset, tmp_path, "fork", *fork)) == 2
    assert "keeps max_exp_avg_sq for the role" in capsys.readouterr().err


def test_weights_alone_start_a_new_run(
    dataset: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = whole / "one"
    rest = [
        option
        for option in options(dataset, tmp_path, "child")[1:]
        if not option.startswith("--model.net")
    ]
    assert (
        main(["finetune", f"--from={parent}", *rest, "--model.net.dropout=0", "--max_steps=2"]) == 0
    )
    config = (tmp_path / "child" / "config.yaml").read_text()
    assert "width: 32" in config  # the shape is the parent's
    first = read_metrics(tmp_path / "child")[0]
    assert first["step"] == 1
    assert first["progress/tokens"] == 256
    final = [m for m in read_metrics(parent) if "val/loss" in m][-1]["val/loss"]
    assert first["train/loss"] == pytest.approx(
        final, abs=0.5
    )  # far below the loss of guessing, ln 512 = 6.24
    facts = json.loads((tmp_path / "child" / "provenance.json").read_text())
    assert facts["parent"] == str(parent / "checkpoints" / f"step={STEPS:08d}.ckpt")
    capsys.readouterr()
    assert main(["inspect", "run", str(tmp_path / "child")]) == 0
    lineage = capsys.readouterr().out
    assert f"from {facts['parent']}" in lineage
    assert f"{parent}: fit" in lineage
    assert main(["finetune", *rest[:-1], "--name=orphan"]) == 2  # no parent
    assert (
        main(["fit", f"--from={parent}", *rest[:-1], "--name=wider", "--model.net.width=64"]) == 2
    )
    assert "do not fit this network" in capsys.readouterr().err


# ---------------------------------------------------------------------- saved in a thread


def test_a_thread_saves_the_same_files_and_a_kill_leaves_the_older_one(
    dataset: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of step 8 is being written for three steps; what is on the disk then is what a
    kill would leave.
    """
    save, write, may_write = PlainCheckpointIO.save_checkpoint, write_checkpoint, threading.Event()

    def save_twice(self: Any, checkpoint: Any, path: Path, storage_options: Any = None) -> None:
        write(checkpoint, tmp_path / "at-once" / path.stem)
        save(self, checkpoint, path, storage_options)

    def write_slowly(checkpoint: Any, path: Path) -> None:
        if "step=00000008" in path.name:
            path.write_bytes(b"half")
            assert may_write.wait(60)
        write(checkpoint, path)

    def kill() -> None:
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        may_write.set()

    monkeypatch.setattr(PlainCheckpointIO, "save_checkpoint", save_twice)
    monkeypatch.setattr("lit_pretrain.callbacks.checkpoints.write_checkpoint", write_slowly)
    in_a_thread = ("--async_checkpoints=true", "--validate_every=0")
    with at_step(11, kill):
        assert main(options(dataset, tmp_path, "run", *in_a_thread)) == 0
    for name in ("step=00000008.ckpt", "step=00000012.ckpt", "step=00000014.ckpt"):
        saved = (tmp_path / "run" / "checkpoints" / name).read_bytes()
        assert saved == (tmp_path / "at-once" / name).read_bytes()
    left = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert left == {"step=00000004.ckpt", "step=00000008.ckpt.tmp"}
    assert main(options(dataset, tmp_path, "killed", *in_a_thread, "--resume=auto")) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "run")
    trained = [line for line in losses(whole / "one") if line[1] is not None]
    assert [line for line in losses(tmp_path / "run") if line[1] is not None] == trained


# ---------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("extra", [[], ["--async_checkpoints=true"]], ids=["at-once", "thread"])
def test_a_full_disk_keeps_the_older_checkpoint(
    dataset: Path,
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = options(dataset, tmp_path, "run", "--resume=auto", *extra)
    older = tmp_path / "run" / "checkpoints" / "step=00000004.ckpt"
    try:
        with at_step(
            7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (older.stat().st_size // 2, hard))
        ):
            code = main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert code == 2, error
    assert "step=00000008.ckpt could not be written" in error
    assert "File too large" in error
    assert "--resume auto" in error
    assert [path.name for path in older.parent.glob("step*")] == [older.name]  # and no .tmp
    assert main(arguments) == 0
    assert losses(tmp_path / "run") == losses(whole / "one")
