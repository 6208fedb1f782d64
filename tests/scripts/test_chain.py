"""The chain: the real script on a small standard library, made rows and a small network; and
the table at its end.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIT = (
    "--model.net.n_layer=1 --model.net.width=32 --model.net.n_head=2 --model.net.ffn_width=64"
    " --model.compile=off --data.seq_len=32 --data.micro_batch_size=2"
    " --data.global_batch_tokens=128 --data.val_tokens=256 --max_tokens=null --max_steps=2"
    " --sample_tokens=2 --trainer.accelerator=cpu"
)
STEPS = "--max_epochs=null --max_steps=2 --log_every=1 --trainer.accelerator=cpu"


@pytest.fixture
def checkout(small_library: Path, tmp_path: Path) -> Path:
    """What the script needs of a checkout, with this interpreter in the place of an environment."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("chain.sh", "chain_data.py", "chain_table.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    shutil.copytree(ROOT / "configs", folder / "configs")
    bin_folder = folder / "env" / "bin"
    bin_folder.mkdir(parents=True)
    for name, program in (("lit_pretrain", f'"{small_library}"'), ("python", "")):
        (bin_folder / name).write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -W ignore {program} "$@"\n'
        )
        (bin_folder / name).chmod(0o755)
    return folder


def chain(checkout: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = (
        os.environ
        | {"VENV": "env", "OMP_NUM_THREADS": "1", "CHAIN_FIT": FIT, "CHAIN_STEPS": STEPS}
        | settings
    )
    script = str(checkout / "scripts" / "chain.sh")
    return subprocess.run(
        ["bash", script],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1000,
    )


def verbs(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [
        line.split()[2]
        for line in done.stdout.splitlines()
        if line.startswith("$ env/bin/lit_pretrain")
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_goes_from_nothing_to_a_talk_and_skips_what_is_done(checkout: Path) -> None:
    first = chain(checkout)
    assert first.returncode == 0, first.stdout + first.stderr
    done = verbs(first)
    order = [verb for verb in done if verb != "validate"]
    assert order[:5] == ["prepare", "fit", "posttrain", "posttrain", "finetune"]
    assert order[-1] == "chat"
    assert "merge" in order
    assert "made rows" in first.stdout
    table = first.stdout.split("scripts/chain_table.py")[1]
    figures = re.findall(r"^(sft|dpo|lora|merge) .*?(\d+\.\d{4})$", table, flags=re.M)
    assert {stage for stage, _ in figures} == {"sft", "dpo", "lora", "merge"}
    merged = re.search(r"^merge .* (\d+\.\d+) +(\d+\.\d+)$", table, flags=re.M)
    assert merged
    assert float(merged[1]) == pytest.approx(
        float(merged[2]), rel=1e-4
    )  # beside the base or in it, an adapter is the same
    # Killed in the middle: only what was lost is done again.
    shutil.rmtree(checkout / "runs" / "chain" / "merged")
    (checkout / "runs" / "chain" / "measured" / "problems-merged.json").unlink()
    second = chain(checkout)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {verb for verb in verbs(second) if verb not in ("export", "evaluate")} == {
        "merge",
        "validate",
        "chat",
    }
    assert "runs/chain/sft is complete" in second.stdout


def test_the_table_shows_what_was_measured(tmp_path: Path) -> None:
    figures = {
        "instructions-before": {"val/loss": 6.5}, "instructions-after": {"val/loss": 4.25},
        "ranking-before": {"val/rewards/accuracy": 0.5},
        "ranking-after": {"val/rewards/accuracy": 0.875},
        "preferences-after": {"val/rewards/accuracy": 0.9375},
        "problems-before": {"val/loss": 2.0}, "problems-after": {"val/loss": 1.0},
        "problems-merged": {"val/loss": 1.0},
        "base-evaluated": {
            "held_out": {"all": {"bits_per_byte": 1.625}},
            "tasks": {"choices": {"metrics": {"acc_norm": 0.5625}}},
        },
        "merged-evaluated": {
            "held_out": {"all": {"bits_per_byte": 1.75}},
            "tasks": {"choices": {"metrics": {"acc_norm": 0.4375}}},
        },
    }  # fmt: skip
    for name, values in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chain_table.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["6.5000", "4.2500"] in [line[-2:] for line in lines]
    assert ["7.3891", "2.7183"] in [line[-2:] for line in lines]
    assert "0.9375" in done.stdout
    assert [line[-2:] for line in lines[-2:]] == [["1.6250", "1.7500"], ["0.5625", "0.4375"]]


def test_made_rows_are_what_the_configs_read(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "chain_data.py"
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out"), str(tmp_path / "nothing")],
        check=True,
        capture_output=True,
    )
    pairs = json.loads((tmp_path / "out" / "preferences.json").read_text())
    assert len(pairs) == 1000
    assert all(row["rejected"] != row["chosen"] for row in pairs)
    problems = [
        json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()
    ]
    for row in problems:
        a, b, c = map(int, re.findall(r"\d+", row["question"]))
        assert row["answer"].endswith(f"#### {a * b + c}")
