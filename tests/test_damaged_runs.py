"""Damaged runs through the command line: every verb that reads one says so in a message, or goes by
what is sound with a warning. Never a traceback, never in silence.

Which damage is seen at all: tests/checkpoint/test_digests.py, tests/report/test_run_folder.py.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import checkpoints
from lit_pretrain.checkpoint.shards import load_archive
from lit_pretrain.checkpoint.weights import write_checkpoint

OPTIONS = [
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64", "--model.compile=off", "--data.seq_len=32",
    "--data.global_batch_tokens=256", "--data.micro_batch_size=8", "--data.val_tokens=256",
    "--log_every=1", "--validate_every=2", "--checkpoint_every=2", "--keep_checkpoints=3",
    "--sample_prompts=[]", "--max_steps=4", "--trainer.accelerator=cpu", "--name=run",
]  # fmt: skip


def fit(dataset: Path, runs: Path, *extra: str) -> int:
    return main(["fit", *OPTIONS, f"--data.path={dataset}", f"--runs={runs}", *extra])


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert fit(dataset, runs) == 0
    return runs / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


HARM: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "braces": lambda file: file.write_bytes(b"{}"),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "flipped": flip,
}


@pytest.mark.parametrize(
    "command",
    [
        "generate --run {} --prompt The", "validate --run {}", "test --run {}", "evaluate {}",
        "export {} {out} --to hf", "merge {} {out}", "adapter export {} {out}",
        "fit --from {} --data.path {data} --max_steps 5 --runs {out}",
        "fit --fork {} --data.path {data} --max_steps 5 --runs {out}",
        "fit --resume {} --data.path {data} --max_steps 5",
        "posttrain --from {} --runs {out}", "plan --from {} --max_steps 5", "chat --run {}",
        "serve --run {}",
    ],
    ids=lambda command: "-".join(command.split()[:2]),
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_name(
    run: Path, dataset: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(run)[-1]
    flip(newest)
    words = [word.format(newest, out=tmp_path / "out", data=dataset) for word in command.split(" ")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"checkpoint {newest} is torn, damaged or not a checkpoint" in error
    assert not (tmp_path / "out").exists()


def test_the_next_older_one_is_taken_with_a_warning(
    run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = checkpoints(run)
    flip(newest)
    said = f"warning: checkpoint {newest} is torn or damaged"
    for command in (["generate", "--prompt=The", "--max_new_tokens=2"], ["validate"]):
        assert main([*command, f"--run={run}"]) == 0
        assert capsys.readouterr().err.count(said) == 1
    assert main(["inspect", "run", str(run), "--verify"]) == 2
    assert f"{newest}: " in capsys.readouterr().err
    assert fit(dataset, run.parent, "--resume=auto") == 0
    captured = capsys.readouterr()
    assert captured.err.count(said) == 1
    assert f"resume: {older}, step 2" in captured.out
    assert main(["inspect", "run", str(run), "--verify"]) == 0
    assert "all 2 checkpoints and the records" in capsys.readouterr().out
    for path in checkpoints(run):
        flip(path)
    assert main(["generate", f"--run={run}", "--prompt=The"]) == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "provenance.json", "lineage.json", "metrics.jsonl", "checkpoints/best.json"],
)
def test_a_damaged_record_is_named(
    run: Path, dataset: Path, name: str, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect run --verify` refuses it, and so does what needs it; the rest goes on."""
    HARM[harm](run / name)
    refuses = {
        "config.yaml": ("inspect run", "generate", "replay"),
        "provenance.json": ("inspect run", "replay"),
        "lineage.json": ("inspect run", "generate"),
    }.get(name, ())
    for command in (
        ["inspect", "run", str(run), "--verify"],
        ["inspect", "run", str(run)],
        ["runs", str(run.parent)],
        ["replay", str(run), "--step=2"],
        ["generate", f"--run={run}", "--checkpoint=best", "--prompt=The", "--max_new_tokens=1"],
    ):
        verb = " ".join(command[:2]) if command[0] == "inspect" else command[0]
        refused = "--verify" in command or verb in refuses
        assert main(command) == (2 if refused else 0), command
        error = capsys.readouterr().err
        warns = (verb, name) in {
            ("inspect run", "metrics.jsonl"),
            ("replay", "metrics.jsonl"),
            ("generate", "checkpoints/best.json"),
        }
        if refused or warns:
            assert Path(name).name in error


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "provenance.json", "lineage.json", "metrics.jsonl", "checkpoints/best.json"],
)
def test_a_damaged_record_stops_no_resume(
    run: Path, dataset: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that is queued again would fail for ever. Afterwards all is sound."""
    checkpoints(run)[-1].unlink()
    (run / name).write_bytes(b"{}")
    assert fit(dataset, run.parent, "--resume=auto") == 0
    error = capsys.readouterr().err
    assert name == "lineage.json" or Path(name).name in error  # it is written at every start
    assert main(["inspect", "run", str(run), "--verify"]) == 0


@pytest.mark.parametrize("verb", ["validate", "test", "evaluate"])
def test_a_network_without_numbers_is_not_measured(
    run: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(run)[-1]
    content = load_archive(newest)
    content["state_dict"] = {
        key: torch.full_like(value, float("nan")) if "head" in key else value
        for key, value in content["state_dict"].items()
    }
    write_checkpoint(content, newest)
    assert main([verb, f"--run={run}"]) == 3
    assert "does not compute numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["model.optimizer.matrix_lr=.inf", "model.clip_norm=.inf", "model.seed=.nan"]
)
def test_settings_are_finite(
    dataset: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) if "seed" in option else contextlib.nullcontext():
        assert fit(dataset, tmp_path, f"--{option}") == 2
    name = option.partition("=")[0].rpartition(".")[2]
    assert name in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
