"""posttrain with every kind of objective, from configs alone; and validate says of such a run
what the run said of itself.
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
    "--model.net.max_seq_len=128",
]
QUIET = [
    "--model.compile=off", "--log_every=1", "--validate_every=0", "--sample_prompts=[]",
    "--trainer.accelerator=cpu",
    # In bf16 an adapter beside its base and one merged into it differ in the fourth digit.
    "--trainer.precision=32-true",
]  # fmt: skip
OBJECTIVE = "lit_pretrain.objective."
FORMATS = {
    "PreferenceData": "preference", "KTOData": "kto", "ChatData": "messages",
    "StepwiseData": "auto",
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def work(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base run and rows of every kind."""
    work = tmp_path_factory.mktemp("objectives")
    text = [
        "--data.seq_len=32",
        "--data.micro_batch_size=2",
        "--data.global_batch_tokens=64",
        "--data.val_tokens=256",
        "--max_steps=1",
    ]
    assert (
        main(
            ["fit", *NET, *QUIET, *text, f"--data.path={dataset}", f"--runs={work}", "--name=base"]
        )
        == 0
    )
    pairs = [
        {
            "prompt": f"What is {i}?",
            "chosen": f"The fox is {i}.",
            "rejected": f"{i} {i} hens, or none.",
        }
        for i in range(60)
    ]
    verdicts = [
        {
            "prompt": p["prompt"],
            "completion": p["chosen"] if i % 2 else p["rejected"],
            "label": bool(i % 2),
        }
        for i, p in enumerate(pairs)
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": p["prompt"]},
                {"role": "assistant", "content": p["chosen"]},
            ]
        }
        for p in pairs
    ]
    steps = [
        {
            "prompt": p["prompt"],
            "completions": [p["chosen"], p["rejected"]],
            "labels": [True, False],
        }
        for p in pairs
    ]
    files = {"pairs": pairs, "verdicts": verdicts, "rows": rows, "steps": steps}
    for name, held in files.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return work


def posttrain(
    work: Path, name: str, objective: dict[str, Any], data: str, *options: str, **model: Any
) -> list[dict[str, float]]:
    file = {"PreferenceData": "pairs", "KTOData": "verdicts", "ChatData": "rows",
            "StepwiseData": "steps"}[data]  # fmt: skip
    config = {
        "model": {
            "objective": objective,
            "optimizer": {
                "class_path": "lit_pretrain.optim.AdamW",
                "init_args": {"lr": 0.01, "weight_decay": 0.0},
            },
            **model,
        },
        "data": {
            "class_path": f"lit_pretrain.data.{data}",
            "init_args": {
                "path": str(work / f"{file}.jsonl"), "format": FORMATS[data], "seq_len": 128,
                "global_batch_rows": 8, "micro_batch_size": 4,
                "validation": 0.2,
            },
        },
        "max_steps": 12,
    }  # fmt: skip
    (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
    arguments = [
        "--from",
        str(work / "base"),
        "--config",
        str(work / f"{name}.yaml"),
        *QUIET,
        f"--runs={work}",
        f"--name={name}",
        *options,
    ]
    assert main(["posttrain", *arguments]) == 0
    return read_metrics(work / name)


CASES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "dpo": ("DPO", {"beta": 0.5, "sft_weight": 0.2}, "PreferenceData", False),
    "dpo_lora": ("DPO", {"beta": 0.5}, "PreferenceData", True),
    "orpo": ("ORPO", {}, "PreferenceData", False),
    "kto": ("KTO", {}, "KTOData", False),
    "kto_lora": ("KTO", {}, "KTOData", True),
}


@pytest.mark.parametrize("name", CASES)
def test_an_objective_learns_and_validate_repeats_what_the_run_said(
    name: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, init_args, data, adapter = CASES[name]
    found = posttrain(
        work, name, {"class_path": OBJECTIVE + objective, "init_args": init_args}, data,
        **({"adapter": LORA} if adapter else {})
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


def test_a_reward_model_is_validated_with_its_own_head(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = posttrain(
        work, "reward_again", {"class_path": OBJECTIVE + "RewardModel"}, "PreferenceData"
    )
    assert "score head: new" in capsys.readouterr().out
    assert (
        main(
            ["validate", "--run", str(work / "reward_again"), "--json", str(work / "figures.json")]
        )
        == 0
    )
    assert "score head: that of the parent" in capsys.readouterr().out
    figures = json.loads((work / "figures.json").read_text())
    assert figures["val/loss"] == pytest.approx(found[-1]["val/loss"], rel=1e-4)


def test_a_process_reward_model_learns_which_steps_are_right(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = posttrain(
        work, "steps", {"class_path": OBJECTIVE + "ProcessRewardModel"}, "StepwiseData"
    )
    printed, log = capsys.readouterr()
    assert "steps: the format is steps, by the fields of its rows" in printed
    assert "steps are right" in printed
    final = next(line for line in reversed(found) if "val/loss" in line)
    assert final["val/steps/accuracy"] == 1.0
    assert final["val/steps/score_right"] > final["val/steps/score_wrong"]
    assert "(accuracy 100.0%)" in log
    assert (
        main(["validate", "--run", str(work / "steps"), "--json", str(work / "figures.json")]) == 0
    )
    figures = json.loads((work / "figures.json").read_text())
    assert figures["val/loss"] == pytest.approx(final["val/loss"], rel=1e-4)
    capsys.readouterr()
    assert main(["export", "--to", "hf", str(work / "steps"), str(work / "exported")]) == 2
    assert "is a reward model: its score head has no place" in capsys.readouterr().err


def test_a_reward_model_with_an_adapter_is_merged_with_its_head(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = posttrain(
        work,
        "reward_lora",
        {"class_path": OBJECTIVE + "RewardModel"},
        "PreferenceData",
        adapter=LORA,
    )
    final = next(line for line in reversed(found) if "val/loss" in line)
    assert final["val/rewards/accuracy"] > 0.9
    assert main(["merge", str(work / "reward_lora"), str(work / "reward_merged")]) == 0
    for run in ("reward_lora", "reward_merged"):
        capsys.readouterr()
        assert (
            main(["validate", "--run", str(work / run), "--json", str(work / "figures.json")]) == 0
        )
        assert "score head: that of the parent" in capsys.readouterr().out
        assert json.loads((work / "figures.json").read_text())["val/loss"] == pytest.approx(
            final["val/loss"], rel=1e-4
        )


def test_a_reference_is_computed_once_and_found_again(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = work / "columns"
    plain = posttrain(work, "dpo_plain", {"class_path": OBJECTIVE + "DPO"}, "PreferenceData")
    first = posttrain(
        work,
        "dpo_first",
        {"class_path": OBJECTIVE + "DPO"},
        "PreferenceData",
        reference_cache=str(cache),
    )
    (file,) = cache.iterdir()
    assert (
        f"reference: column of 60 pairs, computed now and kept in {file}" in capsys.readouterr().out
    )
    # Found again, by a run with an adapter, too, which would else be switched off for it.
    again = posttrain(
        work,
        "dpo_again",
        {"class_path": OBJECTIVE + "DPO"},
        "PreferenceData",
        reference_cache=str(cache),
    )
    assert f"reference: column {file}, computed before" in capsys.readouterr().out
    posttrain(
        work,
        "dpo_lora_cached",
        {"class_path": OBJECTIVE + "DPO"},
        "PreferenceData",
        reference_cache=str(cache),
        adapter=LORA,
    )
    assert f"reference: column {file}, computed before" in capsys.readouterr().out
    keys = ("train/loss", "val/loss", "train/rewards/margin", "val/rewards/chosen")
    for a, b, c in zip(plain, first, again, strict=True):
        assert {k: b[k] for k in keys if k in b} == pytest.approx(
            {k: a[k] for k in keys if k in a}, rel=1e-4, abs=1e-5
        )
        assert {k: c[k] for k in keys if k in c} == {k: b[k] for k in keys if k in b}
    # Another network, template or cut of the rows is another column.
    posttrain(
        work,
        "dpo_cut",
        {"class_path": OBJECTIVE + "DPO"},
        "PreferenceData",
        "--data.init_args.seq_len=64",
        reference_cache=str(cache),
    )
    posttrain(
        work,
        "dpo_other",
        {"class_path": OBJECTIVE + "DPO"},
        "PreferenceData",
        f"--from={work / 'dpo_plain'}",
        reference_cache=str(cache),
    )
    assert len(list(cache.iterdir())) == 3
    # A damaged file is not used.
    file.write_bytes(b"no")
    with pytest.raises(AssertionError):
        posttrain(
            work,
            "dpo_damaged",
            {"class_path": OBJECTIVE + "DPO"},
            "PreferenceData",
            reference_cache=str(cache),
        )
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "data", "model", "message"),
    [
        (
            "KTO",
            "KTOData",
            {"reference_cache": "x"},
            "model.reference_cache keeps a column for pairs (PreferenceData); data KTOData",
        ),
        (
            "SimPO",
            "PreferenceData",
            {"reference": "x"},
            "model.reference is set, and model.objective SimPO never looks at it",
        ),
        (
            "DPO",
            "PreferenceData",
            {"teacher": "x"},
            "model.teacher is set, and model.objective DPO never looks at it",
        ),
        (
            "GRPO",
            "ChatData",
            {},
            (
                "model.objective GRPO needs rollout, and data ChatData provides labels: rollout is"
                " missing"
            ),
        ),
        (
            "RewardModel",
            "ChatData",
            {},
            (
                "model.objective RewardModel needs pairs and score, and data ChatData provides"
                " labels: pairs is"
            ),
        ),
        ("CrossEntropy", "KTOData", {}, "knows nothing of verdicts; verdicts go with KTO"),
        ("CrossEntropy", "StepwiseData", {}, "knows nothing of steps; steps with a label each"),
        ("Distillation", "ChatData", {}, "teacher is missing; set model.teacher"),
    ],
)
def test_combinations_that_mean_nothing_are_refused_by_name(
    objective: str,
    data: str,
    model: dict[str, Any],
    message: str,
    work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(AssertionError):
        posttrain(work, "nonsense", {"class_path": OBJECTIVE + objective}, data, **model)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (work / "nonsense").exists()


def test_a_student_learns_from_a_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posttrain(work, "teacher", {"class_path": OBJECTIVE + "CrossEntropy"}, "ChatData")
    found = posttrain(
        work,
        "student",
        {"class_path": OBJECTIVE + "Distillation"},
        "ChatData",
        teacher=str(work / "teacher"),
    )
    train = [line for line in found if "train/loss" in line]
    assert train[-1]["train/divergence"] < 0.5 * train[0]["train/divergence"]


def test_an_objective_and_data_that_do_not_fit_are_refused_by_name(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        posttrain(work, "wrong", {"class_path": OBJECTIVE + "KTO"}, "PreferenceData")
    error = capsys.readouterr().err
    assert "model.objective KTO needs ref_logp and verdicts" in error
    assert "Traceback" not in error
    with pytest.raises(AssertionError):
        posttrain(work, "wrong_too", {"class_path": OBJECTIVE + "CrossEntropy"}, "PreferenceData")
    assert "pairs go with DPO" in capsys.readouterr().err


def test_verdicts_of_one_kind_are_warned_of_before_and_at_the_end(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (work / "verdicts.jsonl").read_text().splitlines()]
    (work / "praise.jsonl").write_text(
        "".join(json.dumps({**row, "label": True, "id": i}) + "\n" for i, row in enumerate(rows))
    )
    posttrain(
        work, "praise", {"class_path": OBJECTIVE + "KTO"}, "KTOData", "--max_steps=1",
        f"--data.init_args.path={work / 'praise.jsonl'}", "--data.init_args.format=auto",
    )  # fmt: skip
    printed = capsys.readouterr()
    assert printed.err.count("warning: every answer is desirable") == 2
    assert "praise: the format is kto, by the fields of its rows" in printed.out
    assert "unread id 60" in printed.out


def test_a_field_that_nobody_reads_stops_the_run_before_it_begins(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row["question"] = row.pop("prompt")
    (work / "orca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"--data.init_args.path={work / 'orca.jsonl'}"
    with pytest.raises(AssertionError):
        posttrain(work, "orca", {"class_path": OBJECTIVE + "DPO"}, "PreferenceData", path)
    said = capsys.readouterr().err
    assert "orca.jsonl, row 1: the row's field 'question' holds text that nobody reads" in said
    assert "The format orca_pairs reads it" in said
    assert "Traceback" not in said
    assert not (work / "orca").exists()
