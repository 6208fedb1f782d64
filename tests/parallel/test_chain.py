"""The whole chain on two ranks with split matrices: base, SFT, DPO, LoRA, and one network again.

Every stage starts from the run before it and has the losses of one process.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics

QUIET = [
    "--model.compile=off", "--log_every=1", "--validate_every=0", "--sample_prompts=[]",
    "--checkpoint_every=0", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
]  # fmt: skip
SPLIT = ["--trainer.devices=2", "--parallel.tp=2"]
ADAMW = {"class_path": "lit_pretrain.optim.AdamW", "init_args": {"lr": 0.003}}
STAGES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "sft": ("posttrain", {}, "ChatData", "messages"),
    "dpo": (
        "posttrain", {"objective": {"class_path": "lit_pretrain.objective.DPO"}},
        "PreferenceData", "preference",
    ),
    "lora": ("finetune", {"adapter": {"rank": 4, "alpha": 8}}, "ChatData", "messages"),
}  # fmt: skip


def write_rows(work: Path) -> None:
    rows = {"ChatData": [], "PreferenceData": []}
    for i in range(40):
        question = {"role": "user", "content": f"What is {i}?"}
        answer = {"role": "assistant", "content": f"The fox is {i}."}
        rows["ChatData"].append({"messages": [question, answer]})
        wrong = {"role": "assistant", "content": "No."}
        rows["PreferenceData"].append(
            {"prompt": [question], "chosen": [answer], "rejected": [wrong]}
        )
    for name, each in rows.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))


def figures(run: Path) -> list[float]:
    return [m["train/loss"] for m in read_metrics(run) if "train/loss" in m]


@pytest.mark.slow
def test_the_chain_on_two_ranks(dataset: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    write_rows(tmp_path)

    def both(verb: str, name: str, *options: str) -> None:
        """Run a stage on two ranks and on one, and compare the losses."""
        here = [verb, *QUIET, *options, f"--runs={tmp_path}"]
        ran = run_cli(*here, *SPLIT, f"--name={name}", timeout=900)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "mesh tp 2" in ran.stdout
        assert main([*here, f"--name={name}-one"]) == 0
        found = figures(tmp_path / name)
        assert found == pytest.approx(figures(tmp_path / f"{name}-one"), abs=1e-5)
        assert len(found) == 3

    both(
        "fit", "base", "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
        "--model.net.ffn_width=64", "--model.net.max_seq_len=128", "--data.seq_len=32",
        "--data.global_batch_tokens=128", "--data.micro_batch_size=2", "--data.val_tokens=256",
        "--max_steps=3", "--model.optimizer=lit_pretrain.optim.AdamW", f"--data.path={dataset}",
    )  # fmt: skip
    parent = "base"
    for name, (verb, model, data, form) in STAGES.items():
        config = {
            "model": {"optimizer": ADAMW, **model},
            "data": {
                "class_path": f"lit_pretrain.data.{data}",
                "init_args": {
                    "sources": {"made": {"path": str(tmp_path / f"{data}.jsonl"), "format": form}},
                    "seq_len": 128, "global_batch_rows": 8, "micro_batch_size": 4,
                    "validation": 0.2,
                },
            },
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        both(
            verb, name, f"--from={tmp_path / parent}", f"--config={tmp_path / name}.yaml",
            "--max_steps=3",
        )  # fmt: skip
        parent = name
    assert main(["merge", str(tmp_path / "lora"), str(tmp_path / "merged")]) == 0
