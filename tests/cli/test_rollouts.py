"""GRPO from configs alone: a run that learns, says so, resumes, is validated; and what cannot
be is refused by name.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import SUMMARY, read_metrics

NET = [
    "--model.net.n_layer=2",
    "--model.net.width=32",
    "--model.net.n_head=2",
    "--model.net.ffn_width=64",
    "--model.net.max_seq_len=64",
]
QUIET = [
    "--model.compile=off",
    "--log_every=1",
    "--validate_every=0",
    "--sample_prompts=[]",
    "--trainer.accelerator=cpu",
]
TASK = {"name": "addition", "digits": 1, "rows": 100, "prompt": "{a} {op} {b} ="}


@pytest.fixture(scope="module")
def work(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that has seen sums, and the config of a rollout."""
    work = tmp_path_factory.mktemp("rollouts")
    sft = {
        "data": {
            "class_path": "lit_pretrain.data.ChatData",
            "init_args": {
                "sources": {"sums": {"task": TASK}}, "tokenizer": str(dataset), "template": "plain",
                "seq_len": 32, "global_batch_rows": 8,
                "micro_batch_size": 8, "validation": 0.2,
            },
        },
        "max_steps": 30,
    }  # fmt: skip
    (work / "sft.yaml").write_text(yaml.safe_dump(sft))
    lr = ["--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=0.01"]
    assert (
        main(
            [
                "fit",
                *NET,
                *QUIET,
                *lr,
                "--config",
                str(work / "sft.yaml"),
                f"--runs={work}",
                "--name=base",
            ]
        )
        == 0
    )
    rl = {
        "model": {
            "objective": {"class_path": "lit_pretrain.objective.GRPO"},
            "rollout": {
                "rewards": {
                    "answer": {"path": "ExactAnswer", "weight": 0.5},
                    "teens": {"path": "Format", "options": {"pattern": "[1][0-9]"}},
                },
                "max_completion_tokens": 4,
            },
            "optimizer": {
                "class_path": "lit_pretrain.optim.AdamW",
                "init_args": {"lr": 0.01, "weight_decay": 0.0},
            },
        },
        "data": {
            "class_path": "lit_pretrain.data.PromptData",
            "init_args": {
                "sources": {"sums": {"task": TASK}}, "seq_len": 32, "global_batch_rows": 8,
                "micro_batch_size": 4, "group_size": 4,
                "validation": 0.2,
            },
        },
        "max_steps": 12,
    }  # fmt: skip
    (work / "rl.yaml").write_text(yaml.safe_dump(rl))
    return work


def rl(work: Path, name: str, *options: str) -> list[dict[str, float]]:
    arguments = [
        "--from",
        str(work / "base"),
        "--config",
        str(work / "rl.yaml"),
        *QUIET,
        f"--runs={work}",
        f"--name={name}",
        *options,
    ]
    assert main(["posttrain", *arguments]) == 0
    return read_metrics(work / name)


def test_a_run_learns_and_validate_repeats_what_it_said(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rl(work, "run", "--log_every=4", "--checkpoint_every=6")
    printed = capsys.readouterr()
    train = [line for line in found if "train/loss" in line]
    assert [line["step"] for line in train] == [4, 8, 12]
    assert train[-1]["train/rewards/teens"] > train[0]["train/rewards/teens"] + 0.1
    for line in train:
        assert line["train/reward"] == pytest.approx(
            0.5 * line["train/rewards/answer"] + line["train/rewards/teens"], abs=1e-6
        )
    names = (
        "groups_with_signal",
        "completion_tokens",
        "truncated",
        "clip_ratio",
        "entropy",
        "rollout_seconds",
    )
    assert all(f"train/{name}" in train[0] for name in names)
    assert "8 prompts of at most 32 tokens a step" in printed.out
    assert "step 4/12 | " in printed.err
    assert "reward 0." in printed.err
    assert "val reward " in printed.err
    assert f"done: {work / 'run'}: val reward " in printed.out
    final = next(line for line in reversed(found) if "val/loss" in line)
    assert final["val/loss"] == pytest.approx(-final["val/reward"])
    assert "validation rewards/answer" in (work / "run" / SUMMARY).read_text()
    assert main(["validate", "--run", str(work / "run"), "--json", str(work / "figures.json")]) == 0
    figures = json.loads((work / "figures.json").read_text())
    assert figures["val/reward"] == pytest.approx(final["val/reward"], abs=1e-6)
    assert (
        main(
            [
                "validate",
                "--run",
                str(work / "run"),
                "--model.rollout.temperature=0",
                "--json",
                str(work / "greedy.json"),
            ]
        )
        == 0
    )
    assert json.loads((work / "greedy.json").read_text())["val/reward"] != figures["val/reward"]

    # The answers are in TensorBoard, as text.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(work / "run"), size_guidance={"tensors": 0})
    events.Reload()
    assert {"answers/train/text_summary", "answers/validation/text_summary"} <= set(
        events.Tags()["tensors"]
    )
    (text,) = events.Tensors("answers/train/text_summary")[0].tensor_proto.string_val
    assert text.decode().startswith("| prompt | answer | right | reward |")
    assert " + " in text.decode()


def test_a_resumed_run_is_the_run_in_the_middle_of_a_rollout_too(work: Path) -> None:
    options = ["--data.init_args.updates=4", "--checkpoint_every=6", "--trainer.precision=32-true"]
    whole = [line for line in rl(work, "whole", *options) if "train/loss" in line]
    part = work / "part"
    (work / "whole").rename(part)
    for file in (part / "checkpoints").glob("step=00000012.ckpt"):
        file.unlink()
    again = rl(work, "part", *options, "--resume=auto", "--data.init_args.micro_batch_size=8")
    keys = ("train/loss", "train/reward", "train/clip_ratio", "train/entropy", "train/grad_norm")
    found = [line for line in again if "train/loss" in line]
    assert [line["step"] for line in found] == [line["step"] for line in whole]
    for a, b in zip(found, whole, strict=True):
        assert {key: a[key] for key in keys} == pytest.approx(
            {key: b[key] for key in keys}, rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.rollout=null"],
            (
                "rollout is missing; sampled answers come from data of prompts (PromptData) and"
                " model.rollout"
            ),
        ),
        (
            ["--model.objective=DPO"],
            "model.objective DPO needs pairs and ref_logp: remove model.rollout",
        ),
        (
            ["--trainer.strategy=fsdp", "--trainer.devices=2"],
            "a sharded network (trainer.strategy fsdp) would be gathered again",
        ),
        (["--data.init_args.group_size=1"], "data.group_size=1 must be at least 2"),
        (["--data.init_args.updates=0"], "data.updates=0 must be at least 1"),
        (["--model.rollout.max_completion_tokens=20"], "are together more than data.seq_len=32"),
        (
            ["--model.rollout.temperature=0"],
            "model.rollout.temperature=0 gives every answer of a group alike",
        ),
        (
            ["--model.rollout.rewards={answer: {path: ExactAnwser}}"],
            "model.rollout.rewards.answer.path='ExactAnwser' is unknown",
        ),
        (
            ["--model.teacher=somewhere"],
            "model.teacher is set, and model.objective GRPO never looks at it",
        ),
        (
            ["--model.reference_cache=cache"],
            "model.reference_cache is set, and model.objective GRPO never looks at it",
        ),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_mistakes_are_refused_before_anything_is_written(
    options: list[str], message: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [
        "--from",
        str(work / "base"),
        "--config",
        str(work / "rl.yaml"),
        *QUIET,
        f"--runs={tmp_path}",
        "--name=refused",
    ]
    assert main(["posttrain", *base, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "refused").exists()


def test_a_reward_that_fails_ends_the_run_with_its_answer(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_reward.py").write_text(
        "def ask(prompt, completion, row):\n    return row['missing']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    base = [
        "--from",
        str(work / "base"),
        "--config",
        str(work / "rl.yaml"),
        *QUIET,
        f"--runs={tmp_path}",
        "--name=run",
    ]
    options: list[Any] = [*base, "--model.rollout.rewards={mine: {path: broken_reward.ask}}"]
    assert main(["posttrain", *options]) == 2
    error = capsys.readouterr().err
    assert "model.rollout.rewards.mine failed on the answer" in error
    assert "KeyError: 'missing'" in error
    assert "broken_reward.py, line 2" in error
