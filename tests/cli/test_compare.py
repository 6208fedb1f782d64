"""`lit_pretrain compare` as a user runs it, on small runs."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.cli.compare.contenders import find_contenders, training_differences

COMMON = (
    "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=2",
    "--model.net.max_seq_len=64", "--model.compile=off", "--data.seq_len=64",
    "--data.global_batch_tokens=512", "--data.val_tokens=1024", "--max_steps=12", "--log_every=2",
    "--validate_every=4", "--checkpoint_every=6", "--sample_prompts=[]",
    "--trainer.accelerator=cpu",
)  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "a": (),
    "b": ("--model.optimizer.matrix_lr=0.05",),
    "b2": ("--model.optimizer.matrix_lr=0.05", "--model.seed=1", "--data.seed=1"),
    "longer": ("--max_steps=16", "--data.seq_len=32"),
}
Compare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    for name, options in RUNS.items():
        place = (f"--data.path={dataset}", f"--runs={folder}", f"--name={name}")
        assert main(["fit", *COMMON, *options, *place]) == 0
    return folder


@pytest.fixture
def compared(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Compare:
    """`compared("a", "b", "--seed=1")` is what --json prints, within the folder of the runs."""
    monkeypatch.chdir(runs)

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["compare", *arguments, "--json", "--resamples=200"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def last_training_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return float(next(line["train/loss"] for line in reversed(lines) if "train/loss" in line))


def test_two_runs_in_pairs(compared: Compare, runs: Path) -> None:
    found = compared("a", "b")
    assert found["configs"]["b"]["differs"] == {"model.optimizer.matrix_lr": 0.05}
    documents = found["documents"]
    b = documents["configs"]["b"]
    assert documents["baseline"] == "a"
    assert documents["unit"] == "nats per token"
    assert documents["sources"].keys() == {"story", "sums", "code"} == b["sources"].keys()
    low, high = b["ci95"]
    assert low <= b["difference"] <= high
    assert 2 * b["unpaired_half_width"] >= 3 * (high - low)
    assert b["difference"] == pytest.approx(b["nats"] / documents["tokens"])
    assert len(b["spans"]) == 3
    for parts in b["spans"].values():
        assert sum(part["nats"] for part in parts.values()) == b["nats"]
    # Both have read the same rows in the same order.
    one, other = (last_training_loss(runs / name) for name in ("a", "b"))
    assert found["configs"]["b"]["training_loss_difference"] == pytest.approx(other - one)
    assert {equal["axis"] for equal in found["equal"]} >= {"steps", "tokens", "FLOPs"}
    assert any("one run of each config" in note for note in found["notes"])


def test_a_run_against_itself_is_nothing(compared: Compare, runs: Path) -> None:
    shutil.copytree(runs / "a", runs / "copy" / "a", dirs_exist_ok=True)
    for found in (compared("a", "a"), compared("a", "copy/a")):
        one, other = found["documents"]["configs"].values()
        assert (other["nats"], other["difference"], other["ci95"]) == (0.0, 0.0, [0.0, 0.0])
        assert other["verdict"] == "the same"
        assert one["loss"] == other["loss"]
        for parts in other["spans"].values():
            assert {(part["nats"], part["difference"]) for part in parts.values()} == {(0.0, 0.0)}
        assert {each["difference"] for each in other["sources"].values()} == {0.0}
    shutil.rmtree(runs / "copy")


def test_checkpoints_of_one_run_are_told_apart(compared: Compare) -> None:
    early = "a/checkpoints/step=00000006.ckpt"
    found = compared("a", early, "--baseline", early)
    assert found["documents"]["baseline"] == "a/step 6"
    assert found["documents"]["configs"]["a/step 12"]["verdict"] == "better"
    assert any("same number of steps: a/step 6 6, a/step 12 12" in n for n in found["notes"])


def test_runs_that_differ_in_seeds_are_one_config(compared: Compare) -> None:
    found = compared("a", "b", "b2")
    assert list(found["configs"]) == ["a", "b (2 seeds)"]
    assert found["documents"]["configs"]["b (2 seeds)"]["seeds"] == 2
    assert "model.seed" not in found["configs"]["b (2 seeds)"]["differs"]
    # Where nothing else differs, seeds are what is compared.
    alone = compared("b", "b2")
    assert list(alone["configs"]) == ["b", "b2"]
    assert alone["configs"]["b2"]["differs"] == {"model.seed": 1, "data.seed": 1}
    assert alone["configs"]["b2"]["training_loss_difference"] is None


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("data.val_tokens", 512, True),
        ("data.micro_batch_size", 1, True),
        ("data.seed", 7, False),
        ("data.temperature", 2.0, False),
        ("data.cross_documents", True, False),
        ("skip_steps", "3", False),
        ("model.objective", {"class_path": "lit_pretrain.objective.DPO"}, False),
    ],
)
def test_training_losses_are_compared_on_the_same_rows_alone(
    option: str, value: object, runs: Path, *, shown: bool
) -> None:
    places = [str(runs / "a"), str(runs / "b")]
    one, other = find_contenders(places, baseline=None, checkpoint="last")
    options = copy.deepcopy(dict(other.entries[0].run.options))
    *groups, name = option.split(".")
    node = options[groups[0]] if groups else options
    assert node[name] != value
    node[name] = value
    run = replace(other.entries[0].run, options=options)
    other = replace(other, entries=[replace(other.entries[0], run=run)])
    assert list(training_differences([one, other])) == (["b"] if shown else [])


def test_a_run_that_was_not_trained_is_measured_like_any_other(
    compared: Compare, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", "a", "averages/mean", "--last=2"]) == 0
    found = compared("a", "averages/mean")
    assert found["equal"] == []
    assert found["documents"]["configs"]["mean"]["verdict"] == "worse"
    assert any("mean has recorded no validation" in note for note in found["notes"])
    shutil.rmtree(runs / "averages")
    assert main(["compare", "a", "b", "--weights=average"]) == 2
    assert "holds no average of weights" in capsys.readouterr().err


def test_equal_budgets_are_where_all_have_been(compared: Compare, runs: Path) -> None:
    found = compared("a", "longer", "--documents", "false")
    assert found["documents"] is None
    lines = {
        name: [json.loads(line) for line in (runs / name / "metrics.jsonl").open()]
        for name in ("a", "longer")
    }
    held_out = {
        name: {line["step"]: line["val/loss"] for line in some if "val/loss" in line}
        for name, some in lines.items()
    }
    (steps,) = [equal for equal in found["equal"] if equal["axis"] == "steps"]
    assert steps["at"] == 12
    assert steps["loss"] == {name: pytest.approx(held_out[name][12]) for name in held_out}
    # The rows of `longer` are half as long, so it is not at 12 steps with the FLOPs of `a`.
    (flops,) = [equal for equal in found["equal"] if equal["axis"] == "FLOPs"]
    at = [line["progress/flops"] for line in lines["longer"] if line["step"] == 12]
    assert flops["at"] != at[0]


def test_folders_of_runs_and_pictures(
    compared: Compare, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(compared(".", "--documents=false")["configs"]) == 3
    figure, board = tmp_path / "figure.png", tmp_path / "board"
    options = ["--tokens=600", "--resamples=100", f"--figure={figure}", f"--tensorboard={board}"]
    capsys.readouterr()
    assert main(["compare", "a", "b", *options]) == 0
    shown = capsys.readouterr().out
    assert "baseline: a" in shown
    assert "  b: model.optimizer.matrix_lr 0.05" in shown
    for title in ("at equal", "by source", "by kind of text", "by place in", "by repetition"):
        assert title in shown
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert any(board.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "a comparison needs two runs, found 1 in a"),
        (["a", "nowhere"], "nowhere"),
        (["a", "b", "--baseline", "."], "--baseline . holds 4 runs"),
        (["a", "b", "--resamples", "5"], "an interval needs at least 100"),
        (["a", "b", "--tokens", "0"], "--tokens 0 must be at least 2"),
        (["a", "b", "--split", "train"], "--split train must be validation or test"),
        (["a", "b", "--seq_len", "128"], "reads model.net.max_seq_len=64 tokens at most"),
        (["a", "b", "--data", "nowhere"], "nowhere"),
        (["a", "b", "--basline", "a"], "--baseline"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)

    def files() -> list[tuple[Path, int]]:
        return [(path, path.stat().st_mtime_ns) for path in sorted(runs.rglob("*"))]

    before = files()
    capsys.readouterr()
    try:
        code = main(["compare", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    found = capsys.readouterr()
    assert code == 2
    assert message in found.err
    assert "Traceback" not in found.err
    assert files() == before
