"""A user's mistake gets one clear message, an exit code, no traceback, and costs nothing that
was there before.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from lit_pretrain.__main__ import main

BASE = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64", "--model.compile=off",
    "--data.seq_len=32", "--data.global_batch_tokens=256", "--data.micro_batch_size=8",
    "--data.val_tokens=256", "--max_steps=3",
    "--log_every=1", "--sample_prompts=[]", "--trainer.accelerator=cpu", "--name=run",
]  # fmt: skip


def fit(dataset: Path, runs: Path, *extra: str) -> int:
    try:
        return main(["fit", *BASE, f"--data.path={dataset}", f"--runs={runs}", *extra])
    except SystemExit as stop:  # a parser's own exit
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--data.global_batch_tokens=300"],
            "must be a multiple of data.seq_len = 32; the nearest is 288",
        ),
        (
            ["--trainer.devices=16"],
            "devices × data.seq_len = 16 × 32 = 512; the nearest is 512, or take 8 devices",
        ),
        (["--data.weights={story: -1}"], "must be finite and not negative"),
        (["--data.weights={storey: 1}"], "unknown sources ['storey']"),
        (
            ["--data.weights={story: 1}", "--data.temperature=2"],
            "data.weights and data.temperature exclude each other",
        ),
        (
            ["--data.phases=[{from_tokens: 999, weights: {storey: 1}}]"],
            "data.phases[0].weights names unknown sources ['storey']",
        ),
        (["--data.phases=[{from_tokens: 999, weight: {story: 1}}]"], "weight"),
        (["--data.phases=[{weights: {story: 1}}]"], "from_tokens"),
        (["--data.max_epochs=0"], "data.max_epochs must be finite and above 0"),
        (
            ["--data.seq_len=4096", "--data.global_batch_tokens=32768"],
            "longer than the network's positions",
        ),
        (
            [
                "--data.seq_len=1000000",
                "--data.global_batch_tokens=8000000",
                "--model.net.max_seq_len=1000000",
            ],
            "no complete row",
        ),
        (["--model.net.vocab_size=100"], "model.net.vocab_size=100"),
        (["--max_tokens=1000"], "exactly one of max_steps, max_epochs, max_tokens and max_flops"),
        (["--max_steps=0"], "max_steps=0 must be positive"),
        (["--max_steps=null", "--max_tokens=.nan"], "max_tokens=nan must be positive and finite"),
        (["--max_steps=null", "--max_flops=.inf"], "max_flops=inf must be positive and finite"),
        (
            ["--data.global_batch_tokens=1048576"],
            "fewer than one batch of data.global_batch_tokens=1,048,576",
        ),
        (
            ["--data.weights={code: 1}", "--data.global_batch_tokens=131072"],
            "fewer than one batch of data.global_batch_tokens=131,072",
        ),
        (["--model.schedule.warmup=300%"], "longer than the run"),
        (["--trainer.devices=-2"], "the Trainer refuses its settings"),
        (["--trainer.accelerator=quantum"], "the Trainer refuses its settings"),
        (["--trainer.limit_val_batches=0"], "set data.val_tokens"),
        (["--name=../elsewhere"], "must be a plain name"),
        (["--trainer.accumulate_grad_batches=2"], "accumulation is derived"),
        (["--trainer.gradient_clip_val=1.0"], "set model.clip_norm"),
        (["--model.net.n_heads=2"], "Did you mean"),
        (["--model.net.n_head=5"], "n_head"),
        (["--from=nowhere"], "nowhere does not exist"),
        (["--config=missing.yaml"], "missing.yaml"),
    ],
)
def test_mistakes_in_options(
    dataset: Path,
    tmp_path: Path,
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit(dataset, tmp_path, *extra) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (
        list(tmp_path.iterdir()) == []
    )  # a run that is refused leaves nothing that the next one would stumble over


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "data"))


def chunk_of(data: Path) -> Path:
    return sorted((data / "train" / "story").glob("chunk-*.bin"))[0]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_chunk_is_named(
    copy: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = chunk_of(copy)
    content = bytearray(chunk.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    wanted = next(
        c["sha256"]
        for c in manifest["sources"]["story"]["splits"]["train"]["chunks"]
        if c["filename"] == chunk.name
    )
    if damage == "missing":
        chunk.unlink()
    elif damage == "truncated":
        chunk.write_bytes(content[:-10])
    else:
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    code = fit(
        copy,
        tmp_path / "runs",
        "--data.weights={story: 1}",
        "--data.cycle=64",
        "--max_steps=200",
        "--log_every=50",
    )
    error = capsys.readouterr().err
    assert code == 2
    assert chunk.name in error
    assert wanted in error


def test_a_missing_manifest_says_what_to_run(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "manifest.json").unlink()
    assert fit(copy, tmp_path / "runs") == 2
    assert "lit_pretrain prepare" in capsys.readouterr().err


def test_another_tokenizer_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "tokenizer.json"
    text = json.loads(file.read_text())
    text["model"]["merges"] = text["model"]["merges"][:-1]
    file.write_text(json.dumps(text))
    assert fit(copy, tmp_path / "runs") == 2
    assert "is not the tokenizer that encoded the data" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_made(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert fit(dataset, tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_before_the_update(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lit_pretrain.objective import CrossEntropy

    calls, plain = [], CrossEntropy.forward

    def forward(self: CrossEntropy, scores: object, batch: object) -> object:
        total, count, metrics = plain(self, scores, batch)
        calls.append(1)
        return (total * float("nan") if len(calls) == 3 else total), count, metrics

    monkeypatch.setattr(CrossEntropy, "forward", forward)
    code = fit(dataset, tmp_path, "--max_steps=6", "--checkpoint_every=2", "--validate_every=0")
    error = capsys.readouterr().err
    assert code == 3
    assert "step 2: the gradient norm is nan" in error
    assert re.search(r"(story|sums|code) epoch 0 row \d+: \S+\.jsonl:\d+", error), error
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == [
        "step=00000002.ckpt"
    ]


def test_a_run_that_was_refused_can_be_mended(dataset: Path, tmp_path: Path) -> None:
    """Also where an attempt wrote its config and then stopped before its first checkpoint."""
    assert fit(dataset, tmp_path, "--model.net.vocab_size=100", "--resume=auto") == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: {net: {vocab_size: 100}}\n")
    assert fit(dataset, tmp_path, "--resume=auto") == 0
    assert [path.name for path in (tmp_path / "run").glob("config*.yaml")] == ["config.yaml"]
    assert main(["validate", f"--run={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_an_unknown_device_for_generation(
    dataset: Path, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert fit(dataset, tmp_path, "--max_steps=1") == 0
    assert main(["generate", f"--run={tmp_path / 'run'}", f"--device={device}"]) == 2
    assert f"--device={device}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "test", "generate"])
def test_nothing_runs_on_random_weights(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    try:
        code = main([verb, f"--run={tmp_path / 'empty'}"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert "no complete checkpoint" in capsys.readouterr().err
