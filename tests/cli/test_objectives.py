"""posttrain with every kind of objective, from configs alone; and validate says of such a run what the run said of itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.report.folder import SUMMARY, read_metrics

NET = ["--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2", "--model.net.ffn_width=64", "--model.net.max_seq_len=128"]
QUIET = ["--model.compile=off", "--log_every=1", "--validate_every=0", "--sample_prompts=[]", "--trainer.accelerator=cpu"]
OBJECTIVE = "lit_pretrain.objective."
FORMATS = {"PreferenceData": "preference", "KTOData": "kto", "ChatData": "messages"}
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def work(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base run and rows of every kind."""
    work = tmp_path_factory.mktemp("objectives")
    text = ["--data.seq_len=32", "--data.micro_batch_size=2", "--data.global_batch_tokens=64", "--data.val_tokens=256", "--max_steps=1"]
    assert main(["fit", *NET, *QUIET, *text, f"--data.path={dataset}", f"--runs={work}", "--name=base"]) == 0
    pairs = [{"prompt": f"What is {i}?", "chosen": f"The fox is {i}.", "rejected": f"{i} {i} hens, or none."} for i in range(60)]
    verdicts = [
        {"prompt": p["prompt"], "completion": p["chosen"] if i % 2 else p["rejected"], "label": bool(i % 2)} for i, p in enumerate(pairs)
    ]
    rows = [{"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["chosen"]}]} for p in pairs]
    for name, held in (("pairs", pairs), ("verdicts", verdicts), ("rows", rows)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return work


def posttrain(work: Path, name: str, objective: dict[str, Any], data: str, *options: str, **model: Any) -> list[dict[str, float]]:
    file = {"PreferenceData": "pairs", "KTOData": "verdicts", "ChatData": "rows"}[data]
    config = {
        "model": {
            "objective": objective,
            "optimizer": {"class_path": "lit_pretrain.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.0}},
            **model,
        },
        "data": {
            "class_path": f"lit_pretrain.data.{data}",
            "init_args": {
                "path": str(work / f"{file}.jsonl"), "format": FORMATS[data], "seq_len": 128, "global_batch_rows": 8, "micro_batch_size": 4,
                "validation": 0.2,
            },
        },
        "max_steps": 12,
    }  # fmt: skip
    (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--from", str(work / "base"), "--config", str(work / f"{name}.yaml"), *QUIET, f"--runs={work}", f"--name={name}", *options]
    assert main(["posttrain", *arguments]) == 0
    return read_metrics(work / name)


CASES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "dpo": ("DPO", {"beta": 0.5, "sft_weight": 0.2}, "PreferenceData", False),
    "dpo_lora": ("DPO", {"beta": 0.5}, "PreferenceData", True),
    "orpo": ("ORPO", {}, "PreferenceData", False),
    "kto_lora": ("KTO", {}, "KTOData", True),
}


@pytest.mark.parametrize("name", CASES)
def test_an_objective_learns_and_validate_repeats_what_the_run_said(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective, init_args, data, adapter = CASES[name]
    found = posttrain(
        work, name, {"class_path": OBJECTIVE + objective, "init_args": init_args}, data, **({"adapter": LORA} if adapter else {})
    )  # fmt: skip
    printed = capsys.readouterr().out
    train = [line for line in found if "train/loss" in line]
    assert train[-1]["train/loss"] < train[0]["train/loss"]
    if objective != "ORPO":
        assert ("adapter switched off" if adapter else "frozen copy of ") in printed
        assert train[0]["train/rewards/chosen"] == pytest.approx(0.0, abs=1e-4)
    final = next(line for line in reversed(found) if "val/loss" in line)
    if objective != "KTO":
        assert final["val/rewards/accuracy"] > 0.9
    assert "validation rewards/chosen" in (work / name / SUMMARY).read_text()
    assert main(["validate", "--run", str(work / name), "--json", str(work / "figures.json")]) == 0
    figures = json.loads((work / "figures.json").read_text())
    for key in ("val/loss", "val/rewards/chosen"):
        assert figures[key] == pytest.approx(final[key], rel=1e-4, abs=1e-5)


def test_a_reward_model_is_validated_with_its_own_head(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = posttrain(work, "reward_again", {"class_path": OBJECTIVE + "RewardModel"}, "PreferenceData")
    assert "score head: new" in capsys.readouterr().out
    assert main(["validate", "--run", str(work / "reward_again"), "--json", str(work / "figures.json")]) == 0
    assert "score head: that of the parent" in capsys.readouterr().out
    figures = json.loads((work / "figures.json").read_text())
    assert figures["val/loss"] == pytest.approx(found[-1]["val/loss"], rel=1e-4)


def test_a_student_learns_from_a_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posttrain(work, "teacher", {"class_path": OBJECTIVE + "CrossEntropy"}, "ChatData")
    found = posttrain(work, "student", {"class_path": OBJECTIVE + "Distillation"}, "ChatData", teacher=str(work / "teacher"))
    train = [line for line in found if "train/loss" in line]
    assert train[-1]["train/divergence"] < 0.5 * train[0]["train/divergence"]


def test_an_objective_and_data_that_do_not_fit_are_refused_by_name(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        posttrain(work, "wrong", {"class_path": OBJECTIVE + "KTO"}, "PreferenceData")
    error = capsys.readouterr().err
    assert "model.objective KTO needs ref_logp and verdicts" in error
    assert "Traceback" not in error
    with pytest.raises(AssertionError):
        posttrain(work, "wrong_too", {"class_path": OBJECTIVE + "CrossEntropy"}, "PreferenceData")
    assert "pairs go with DPO" in capsys.readouterr().err
