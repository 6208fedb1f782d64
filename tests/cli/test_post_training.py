"""posttrain on rows: a run that learns, saves what it is, re-runs from its own config, resumes
exactly, and shows its batches.
"""

import json
from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.lineage import lineage_of
from lit_pretrain.cli.train.resolve import names_class
from lit_pretrain.decontaminate.evaluation_set import content_sha256
from lit_pretrain.evaluate.harness import decontamination_status
from lit_pretrain.record_files import read_records
from lit_pretrain.report.run_folder import read_metrics

NET = [
    "--model.net.n_layer=2",
    "--model.net.width=32",
    "--model.net.n_head=2",
    "--model.net.ffn_width=64",
    "--model.net.max_seq_len=128",
]
QUIET = [
    "--model.compile=off",
    "--log_every=1",
    "--validate_every=0",
    "--sample_tokens=2",
    "--sample_prompts=['']",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def work(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base run, a file of rows and a config."""
    work = tmp_path_factory.mktemp("work")
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
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?"},
                {"role": "assistant", "content": f"The fox is {i}."},
            ]
        }
        for i in range(60)
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {
            "optimizer": {"class_path": "lit_pretrain.optim.AdamW", "init_args": {"lr": 0.01}}
        },
        "data": {
            "class_path": "lit_pretrain.data.ChatData",
            "init_args": {
                "path": str(work / "rows.jsonl"),
                "seq_len": 128,
                "global_batch_rows": 4,
                "micro_batch_size": 2,
                "validation": 0.2,
            },
        },
    }
    (work / "sft.yaml").write_text(yaml.safe_dump(config))
    return work


def test_rows_are_held_against_what_the_run_will_be_examined_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = "What is the animal that the fox and the owl and the hen saw by the lake at night?"
    (work / "exam.jsonl").write_text(json.dumps({"question": item}) + "\n")
    leak = {
        "messages": [
            {"role": "user", "content": f"Tell me. {item}"},
            {"role": "assistant", "content": "The cat."},
        ]
    }
    (work / "leaky.jsonl").write_text((work / "rows.jsonl").read_text() + json.dumps(leak) + "\n")
    gate = {"against": {"exam": {"path": str(work / "exam.jsonl"), "fields": ["question"]}}}
    (work / "gate.yaml").write_text(
        yaml.safe_dump(
            {"data": {"init_args": {"path": str(work / "leaky.jsonl"), "decontaminate": gate}}}
        )
    )
    run(work, f"--config={work / 'gate.yaml'}", "--max_steps=1", name="gated")
    printed = capsys.readouterr().out
    assert "leaky: 61 rows, 60 used, dropped 1 (contaminated 1)" in printed
    assert (
        "decontaminated against exam: rows with an item 1 (removed), items found 1 of 1, too short"
        " to be looked for 0" in printed
    )
    stages = lineage_of(work / "gated").stages
    exam = frozenset({content_sha256(read_records(work / "exam.jsonl"))})
    alone = decontamination_status(exam, stages[:1])
    assert alone.verdict == "clean"
    assert "was decontaminated against it as exam" in alone.reason
    # The text of its parent was not.
    assert decontamination_status(exam, stages).verdict == "undeclared"
    assert main(["inspect", "run", str(work / "gated")]) == 0
    assert "decontaminated against exam: 1 documents hit, remove" in capsys.readouterr().out
    again = [
        "posttrain",
        "--config",
        str(work / "gated" / "config.yaml"),
        f"--from={work / 'base'}",
        "--name=gated-again",
    ]
    assert main(again) == 0
    assert losses(read_metrics(work / "gated-again")) == losses(read_metrics(work / "gated"))


def run(work: Path, *options: str, name: str) -> list[dict[str, float]]:
    arguments = [
        "posttrain",
        "--from",
        str(work / "base"),
        "--config",
        str(work / "sft.yaml"),
        *QUIET,
        f"--runs={work}",
        f"--name={name}",
        *options,
    ]
    assert main(arguments) == 0
    return read_metrics(work / name)


def losses(lines: list[dict[str, float]]) -> list[float]:
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_fine_tuning_from_a_base_learns_and_its_config_runs_again(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(work, "--max_epochs=4", name="sft")
    printed = capsys.readouterr().out
    assert losses(found)[-1] < losses(found)[0] - 1
    assert "rows: 60 rows, 60 used, dropped 0" in printed
    assert printed.split("tokens = ")[1].startswith("4.0")  # epochs
    facts = json.loads((work / "sft" / "provenance.json").read_text())
    saved = yaml.safe_load((work / "sft" / "config.yaml").read_text())
    assert (saved["max_epochs"], saved["max_steps"]) == (None, len(losses(found)))
    assert saved["data"]["init_args"]["tokenizer"] == str(work / "base")
    assert len(facts["template_hash"]) == 64
    assert (work / "sft" / "chat_template.jinja").read_text().startswith("{#- ChatML")

    assert (
        main(
            [
                "posttrain",
                "--config",
                str(work / "sft" / "config.yaml"),
                f"--from={work / 'base'}",
                "--name=again",
            ]
        )
        == 0
    )
    assert losses(read_metrics(work / "again")) == losses(found)

    capsys.readouterr()
    assert main(["validate", "--run", str(work / "sft")]) == 0
    final = next(line for line in reversed(found) if "val/loss" in line)
    assert f"{final['val/loss']:.4f}" in capsys.readouterr().out

    # A stage after it takes its tokenizer and its template.
    other = run(work, "--max_steps=1", f"--from={work / 'sft'}", name="next")
    assert losses(other)[0] < losses(found)[0]
    assert yaml.safe_load((work / "next" / "config.yaml").read_text())["data"]["init_args"][
        "tokenizer"
    ] == str(work / "sft")


def test_a_resumed_run_is_the_run(work: Path) -> None:
    options = [
        "--max_steps=6",
        "--checkpoint_every=3",
        "--trainer.precision=32-true",
    ]  # other micro-batches add up in another order
    whole = losses(run(work, *options, name="whole"))
    part = work / "part"
    (work / "whole").rename(part)
    for file in (part / "checkpoints").glob("step=00000006.ckpt"):
        file.unlink()
    found = run(work, *options, "--resume=auto", "--data.init_args.micro_batch_size=4", name="part")
    assert losses(found) == pytest.approx(whole, rel=1e-5)


def test_a_changed_template_is_not_resumed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(work, "--max_steps=2", "--checkpoint_every=1", name="one")
    options = [
        *QUIET,
        f"--runs={work}",
        "--name=one",
        "--max_steps=3",
        "--resume=auto",
        "--data.init_args.template=plain",
    ]
    assert (
        main(
            [
                "posttrain",
                "--from",
                str(work / "base"),
                "--config",
                str(work / "sft.yaml"),
                *options,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "data.template: the checkpoint has" in error
    assert "max_steps" not in error, "a constant rate may go on for longer"


def test_the_batch_view_marks_what_is_learned(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "inspect",
        "batch",
        "--from",
        str(work / "base"),
        "--config",
        str(work / "sft.yaml"),
        "--rows=1",
    ]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    assert "rows: 60 rows, 60 used, dropped 0" in plain
    assert "document 1, places " in plain
    assert "⟦The fox is " in plain
    assert (
        plain.count("⟦") == plain.count("⟧") == plain.count(".<|im_end|>⟧") + 1
    )  # the heading explains them
    assert main([*arguments, "--color=true"]) == 0
    colored = capsys.readouterr().out
    assert "\x1b[32mThe fox is " in colored
    assert "⟦" not in colored


def test_the_batch_view_shows_prepared_text(
    work: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "inspect",
                "batch",
                f"--data.path={dataset}",
                "--data.seq_len=64",
                "--data.global_batch_tokens=512",
                "--rows=2",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.count("64 of 64 places learned") >= 1
    assert "document 0, places 0 to " in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--max_steps=1", "--data.init_args.tokenizer={other}"],
            r"Leave data.tokenizer out to take the parent's",
        ),
        (["--max_steps=1", "--max_epochs=1"], "give exactly one of max_steps, max_epochs"),
        (["--max_steps=1", "--data.init_args.seq_len=256"], "longer than the network's positions"),
        (["--max_steps=1", "--data.init_args.template=nothing"], "is neither a file nor a folder"),
        (["--max_steps=1", "--data.init_args.path=missing.jsonl"], "missing.jsonl does not exist"),
        (
            ["--max_steps=1", "--data.init_args.global_batch_rows=3", "--trainer.devices=2"],
            "must be a multiple of devices = 2; the nearest is 4, or take 1 or 3 devices",
        ),
    ],
)
def test_mistakes(
    options: list[str], message: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import make_tokenizer

    make_tokenizer().save(tmp_path)
    options = [option.replace("{other}", str(tmp_path)) for option in options]
    arguments = [
        "posttrain",
        "--from",
        str(work / "base"),
        "--config",
        str(work / "sft.yaml"),
        *QUIET,
        f"--runs={tmp_path}",
        "--name=run",
        *options,
    ]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_class_of_the_data_is_found_before_parsing(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    for text, named in (
        ("data: {path: x}", False),
        ("data: {class_path: X}", True),
        ("max_steps: 1", False),
    ):
        config.write_text(text)
        assert names_class(["--config", str(config)]) is named
        assert names_class([f"--config={config}", "--data.class_path=Y"])
    assert names_class(["--data", "ChatData"])
    assert not names_class(["--data.path=x"])
