"""Text of one's own, whatever its shape, goes from a folder to a network without another option."""

import io
import itertools
import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.cli.train.train_cli import TrainCLI
from lit_pretrain.corpus.chunk_reader import read_chunk_header
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.prepare.record import STEP_TOKENS
from lit_pretrain.tokenizer.tokenizer import Tokenizer

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]

CONFIG = Path(__file__).parents[1] / "configs/prepare/text_folder.yaml"
SHORT = [
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2", "--model.compile=off",
    "--max_steps=2",
    "--sample_prompts=[]", "--trainer.precision=32-true",
]  # fmt: skip


def story(size: int, seed: int) -> str:
    rng = random.Random(seed)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(1500)
    ]
    lines: list[str] = []
    while sum(map(len, lines)) < size:
        lines.append(" ".join(rng.choices(words, k=12)).capitalize() + ".\n")
    return "".join(lines)[:size]


SHAPES = {
    "one file": [1_000_000],
    "19 files": [60_000] * 19,
    "200 short ones": [3_000] * 200,
    "tiny": [20_000],
}


def lay(folder: Path, sizes: list[int]) -> list[str]:
    folder.mkdir()
    texts = [story(size, seed) for seed, size in enumerate(sizes)]
    for n, text in enumerate(texts):
        (folder / f"{n}.txt").write_text(text)
    return texts


def prepare(folder: Path, out: Path) -> Manifest:
    options = [f"--config={CONFIG}", f"--sources.mine.path={folder}", f"--out={out}", "--workers=1"]
    assert main(["prepare", *options]) == 0
    return Manifest.load(out)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_folder_trains(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = lay(tmp_path / "texts", SHAPES[shape])
    out = tmp_path / "data"
    manifest = prepare(tmp_path / "texts", out)
    source, table = manifest.sources["mine"], capsys.readouterr().out
    whole = sum(len(text) for text in texts)
    assert sum(part.bytes for part in source.splits.values()) == whole
    for split, share in (("validation", 0.05), ("test", 0.01)):
        assert share / 4 <= source.splits[split].bytes / whole <= 4 * share
        (line,) = re.findall(rf"^mine +{split} .*", table, flags=re.M)
        assert f"{source.splits[split].bytes / whole:.1%}" in line
        assert (
            ("end of a document" in line) == (source.held_out[split] == "tail") == (len(texts) < 20)
        )

    tokenizer, stored = Tokenizer.load(out), {}
    for split in SPLITS:
        (chunk,) = source.splits[split].chunks
        data = (out / split / "mine" / chunk.filename).read_bytes()
        rows = [
            json.loads(line)
            for line in (out / split / "mine" / "documents.jsonl").read_text().splitlines()
        ]
        offsets = read_chunk_header(io.BytesIO(data))
        ids = [
            memoryview(data)[begin:end].cast("H").tolist()[1:]
            for begin, end in itertools.pairwise(offsets)
        ]
        stored[split] = [
            (row["origin"], tokenizer.decode(one)) for row, one in zip(rows, ids, strict=True)
        ]
    for n, text in enumerate(texts):
        assert (
            "".join(
                piece for split in SPLITS for origin, piece in stored[split] if origin == f"{n}.txt"
            )
            == text
        )

    run = [
        "fit",
        f"--data.path={out}",
        f"--runs={tmp_path}",
        "--name=mine",
        "--trainer.accelerator=cpu",
        *SHORT,
    ]
    assert main(run) == 0
    assert re.search(r"done: .*mine: val loss \d", capsys.readouterr().out)
    assert (
        main(
            [
                "generate",
                f"--run={tmp_path / 'mine'}",
                "--prompt=The",
                "--max_new_tokens=2",
                "--device=cpu",
            ]
        )
        == 0
    )


def test_no_option_is_needed(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network, length and rates that `fit` takes by itself, parsed, and for a first step."""
    lay(tmp_path / "texts", SHAPES["tiny"])
    done = run_cli(
        "prepare", "--config", CONFIG, "--sources.mine.path", "texts", "--out", "data/mine"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"mine: validation holds \d+ tokens, .* raise splits.validation", done.stderr)
    monkeypatch.chdir(tmp_path)
    cli = TrainCLI("fit", ["--data.path", "data/mine"])
    assert cli.config.max_steps == 300
    assert cli.place.folder.parent == Path("runs")
    done = run_cli("fit", "--data.path", "data/mine", "--max_steps", 1, "--model.compile", "off")
    assert done.returncode == 0, done.stderr
    (run,) = re.findall(r"done: (runs/fit-\S+): val loss", done.stdout)
    done = run_cli("generate", "--run", run, "--prompt", "The", "--max_new_tokens", 2)
    assert done.returncode == 0, done.stderr


def test_text_for_less_than_a_batch_is_said_by_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TextData().global_batch_tokens == STEP_TOKENS
    lay(tmp_path / "texts", [2_000])
    prepare(tmp_path / "texts", tmp_path / "data")
    assert re.search(
        r"\d+ tokens to train on are less than a step of `fit` reads by default \(4,096\)",
        capsys.readouterr().err,
    )
