"""The bench and the race run: their tables are whole, on toy shapes whose figures mean nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_bench(dataset: Path) -> None:
    lines = run(
        "bench.py", "--tiny", "--steps=2", "--precision=32-true", f"--data={dataset}"
    ).splitlines()
    rows = {
        line[:20].strip(): line[20:].split()
        for line in lines
        if line.startswith(("bare", "lit_pretrain"))
    }
    assert list(rows) == ["bare eager", "bare eager +docs", "lit_pretrain fit"]
    rate = {name: float(row[0].replace(",", "")) for name, row in rows.items()}
    assert all(value > 0 for value in rate.values())
    best = max(rate["bare eager"], rate["bare eager +docs"])
    for name, row in rows.items():
        assert float(row[1]) == pytest.approx(
            rate[name] / best, abs=2e-3
        )  # of the best of all bare loops, also of that with documents
        assert float(row[2]) == pytest.approx(rate[name] / rate["bare eager +docs"], abs=2e-3)
        assert float(row[3].replace(",", "")) > 50  # MiB
    assert any(line.startswith("data wait of fit: ") for line in lines)
    assert lines[-1].startswith("reading alone: ")


@pytest.mark.slow
def test_the_race(dataset: Path, tmp_path: Path, nanochat: Callable[[str], Path]) -> None:
    ours = (
        f"--config configs/pretrain/quickstart.yaml --data.path={dataset} --model.net.n_layer=1"
        " --model.net.width=32 --model.net.n_head=2 --model.net.ffn_width=64"
        " --model.net.max_seq_len=64 --model.compile=off --data.seq_len=32"
        " --data.micro_batch_size=2 --data.global_batch_tokens=64"
    )
    theirs = (
        f"scripts/race_nanochat.py --nanochat={nanochat('Functions')} --data={dataset} --seq_len=32"
        " --batch_tokens=64 --micro_batch_size=2 --width=32 --compile=off"
    )
    entrants = {"ours": ours, "theirs": theirs}
    (tmp_path / "entrants.yaml").write_text(yaml.safe_dump(entrants, sort_keys=False))
    command = [
        "race.py", f"--entrants={tmp_path / 'entrants.yaml'}", "--seconds=0.05",
        "--timing_steps=2", "--seeds", "1", f"--runs={tmp_path}", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    lines = run(*command).splitlines()
    assert [line.split()[0] for line in lines] == ["entrant", *entrants]
    for line in lines[1:]:
        _, _, seconds, steps, _, bits, ratio = line.split()
        assert (
            int(steps) == max(1, round(0.05 / float(seconds))) or float(seconds) < 0.01
        )  # as printed, to a millisecond
        assert 0 < float(bits) < 8
        assert 0 < float(ratio) < 10
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json*")}
    assert run(*command).splitlines() == lines  # --runs keeps them
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_the_bench_of_stages(dataset: Path) -> None:
    pytest.importorskip("trl", reason="the other contestants are TRL's")
    lines = run(
        "bench_stages.py",
        "--tiny",
        "--steps=2",
        "--precision=32-true",
        f"--tokenizer={dataset / 'tokenizer.json'}",
    ).splitlines()
    titles = [line for line in lines if line.startswith(("sft, 32-true", "lora, 32-true"))]
    assert len(titles) == 2
    rows = [line for line in lines if line.startswith(("lit_pretrain", "TRL"))]
    assert len(rows) == 2 * 5
    for group in (rows[:5], rows[5:]):
        rate = [float(line[24:].split()[0].replace(",", "")) for line in group]
        best = max(rate[1:])
        for line, value in zip(group, rate, strict=True):
            assert float(line[24:].split()[1]) == pytest.approx(value / best, abs=2e-2)
            assert float(line[24:].split()[-1].replace(",", "")) > 50  # MiB


@pytest.mark.slow
def test_the_bench_of_generation() -> None:
    lines = run("bench_generate.py", "--tiny", "--rounds=1", "--new=16").splitlines()
    rows = [line.split() for line in lines if line.startswith(("float32", "bfloat16"))]
    assert [row[:2] for row in rows] == [
        ["float32", "1"],
        ["float32", "8"],
        ["bfloat16", "1"],
        ["bfloat16", "8"],
    ]
    for row in rows:
        native, modules, theirs, reading = (float(row[i].replace(",", "")) for i in (2, 3, 4, 6))
        assert min(native, modules, theirs, reading) > 0
        assert float(row[5].removesuffix("×")) == pytest.approx(native / theirs, rel=0.05, abs=0.06)
