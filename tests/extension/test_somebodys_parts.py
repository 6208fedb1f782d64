"""What somebody else adds is one file, named by class path.

An optimizer (by a recipe, or a bare class), an objective, a reader, a filter, a format of rows, a
chat template, a reward, a callback; and a verb, which is a file among the verbs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import lit_pretrain.cli
from lit_pretrain.__main__ import main
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.report.run_folder import read_metrics
from tests.conftest import ROOT, RunCli

FOLDER = Path(__file__).parent
HERE = {"PYTHONPATH": str(FOLDER)}
NET = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=32",
]  # fmt: skip
RUN = [
    *NET, "--model.compile=off", "--max_steps=6", "--log_every=1", "--validate_every=3",
    "--sample_prompts=[]", "--data.seq_len=32", "--data.micro_batch_size=4",
    "--data.global_batch_tokens=256", "--data.val_tokens=512", "--trainer.precision=32-true",
]  # fmt: skip
OWN = [
    "--model.optimizer=somebody.momentum_sgd.MomentumSGD",
    "--model.optimizer.matrix_lr=0.2",
    "--model.optimizer.weight_decay=0.01",
    "--model.objective=somebody.focal.Focal",
    "--model.objective.gamma=1.0",
]


def test_a_run_learns_by_an_optimizer_and_an_objective_of_somebody_else(
    run_cli: RunCli, dataset: Path, tmp_path: Path
) -> None:
    where = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=own"]
    done = run_cli("fit", *RUN, *OWN, *where, env=HERE)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert any("val/nll" in row for row in rows), "the objective's own metric"
    checkpoint = torch.load(next((tmp_path / "own").rglob("*.ckpt")), weights_only=True)
    groups = {group["role"]: group for group in checkpoint["optimizer_states"][0]["param_groups"]}
    assert groups["matrix"]["initial_lr"] == 0.2
    assert groups["vector"]["weight_decay"] == 0.0 < groups["matrix"]["weight_decay"]
    saved = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())["model"]
    assert saved["optimizer"]["class_path"] == "somebody.momentum_sgd.MomentumSGD"
    assert saved["objective"]["init_args"] == {"gamma": 1.0}


def test_the_planner_reads_the_moments_of_somebodys_optimizer(run_cli: RunCli) -> None:
    moments = {}
    for optimizer in ("somebody.momentum_sgd.MomentumSGD", "lit_pretrain.optim.AdamW"):
        done = run_cli(
            "plan", *NET, "--max_tokens=1e6", f"--model.optimizer={optimizer}", "--json", env=HERE
        )
        assert done.returncode == 0, done.stderr
        moments[optimizer] = json.loads(done.stdout)["memory"]["states"]["moments"]
    sgd, adamw = moments.values()
    assert adamw == 2 * sgd > 0


def test_a_class_that_is_no_recipe_is_refused_by_name(run_cli: RunCli) -> None:
    for path, reason in {
        "torch.nn.Linear": "is not a subclass of lit_pretrain.optim.OptimizerRecipe or torch.optim",
        "somebody.momentum_sgd.Momentum": "Did you mean 'MomentumSGD'?",
        "somebody.nothing.SGD": "there is no module 'somebody.nothing'",
    }.items():
        done = run_cli("plan", *NET, f"--model.optimizer={path}", env=HERE)
        assert done.returncode == 2
        assert f"error: model.optimizer={path!r}" in done.stderr
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def somebody() -> Iterator[None]:
    """The modules of somebody else on the path of this process and of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setenv("PYTHONPATH", str(FOLDER))
        yield


def run(verb: str, *arguments: object) -> None:
    assert main([verb, *map(str, arguments)]) == 0


@pytest.fixture(scope="module")
def own_dataset(somebody: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of somebody's diaries without their shouting, read by their own reader."""
    work = tmp_path_factory.mktemp("diaries")
    entries = [f"Day {n}: the fox sat by the lake and saw {n} hens.\n" for n in range(400)]
    (work / "a.diary").write_text("***\n".join([*entries, "NOBODY READS THIS ENTRY\n"]))
    config = {
        "out": str(work / "data"),
        "sources": {"own": {
            "kind": "somebody.diary.DiaryReader", "path": str(work), "licence": "CC0-1.0",
            "filters": [
                {"class_path": "somebody.no_shouting.NoShouting", "init_args": {"most": 0.4}}
            ],
        }},
        "tokenizer": {"kind": "train", "vocab_size": 300},
        "splits": {"validation": 0.1, "test": 0.05}, "workers": 1,
    }  # fmt: skip
    (work / "prepare.yaml").write_text(yaml.safe_dump(config))
    run("prepare", "--config", work / "prepare.yaml")
    return work / "data"


def test_a_reader_and_a_filter_of_somebody_else_prepare_a_dataset(own_dataset: Path) -> None:
    source = Manifest.load(own_dataset).sources["own"]
    assert "shouting" in str(source.funnel)
    assert sum(split.documents for split in source.splits.values()) == 400


TINY = [
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=32", "--model.compile=off", "--log_every=1", "--validate_every=0",
    "--sample_prompts=[]", "--trainer.accelerator=cpu", "--data.init_args.seq_len=32",
    "--data.init_args.global_batch_rows=8", "--data.init_args.micro_batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(own_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on rows in somebody's format and template, by their optimizer, with their callback."""
    work = tmp_path_factory.mktemp("rows")
    rows = [{"ask": f"{n} + 1", "reply": {"text": str(n + 1)}} for n in range(40)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "arrow.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }} -> {% endif %}{% endfor %}"
    )
    source = {"own": {"path": str(work / "rows.jsonl"), "format": "somebody.rows.TRIPLES"}}
    callback = {
        "class_path": "somebody.step_log.StepLog", "init_args": {"file": str(work / "steps.txt")},
    }  # fmt: skip
    run(
        "fit", "--data=lit_pretrain.data.ChatData", *TINY,
        f"--data.init_args.sources={json.dumps(source)}", "--data.init_args.validation=0.2",
        f"--data.init_args.tokenizer={own_dataset}",
        f"--data.init_args.template={work / 'arrow.jinja'}",
        "--model.optimizer=somebody.lion.Lion", "--model.optimizer.lr=0.003",
        f"--trainer.callbacks=[{json.dumps(callback)}]", "--max_steps=4", f"--runs={work}",
        "--name=tuned",
    )  # fmt: skip
    return work / "tuned"


def test_a_bare_class_a_format_a_template_and_a_callback_train_a_run(tuned: Path) -> None:
    losses = [row["train/loss"] for row in read_metrics(tuned) if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert (tuned.parent / "steps.txt").read_text() == "1\n2\n3\n4\n"
    checkpoint = torch.load(next(tuned.rglob("*.ckpt")), weights_only=True)
    groups = {group["role"]: group for group in checkpoint["optimizer_states"][0]["param_groups"]}
    assert groups["matrix"]["weight_decay"] == 0.1, "Lion's own default"
    assert groups["vector"]["weight_decay"] == 0.0, "a role that never decays"
    assert groups["matrix"]["initial_lr"] == groups["vector"]["initial_lr"] == 0.003


def test_a_reward_of_somebody_else_is_learned_from(tuned: Path, tmp_path: Path) -> None:
    source = {"sums": {"task": {"name": "addition", "digits": 1, "rows": 40}}}
    reward = {"short": {"path": "somebody.brevity.brevity", "options": {"most": 5}}}
    run(
        "posttrain", f"--from={tuned}", "--data=lit_pretrain.data.PromptData", *TINY[4:],
        f"--data.init_args.sources={json.dumps(source)}", "--data.init_args.group_size=4",
        "--data.init_args.template=plain", "--model.objective=GRPO",
        f"--model.rollout={json.dumps({'rewards': reward, 'max_completion_tokens': 4})}",
        "--max_steps=1", f"--runs={tmp_path}", "--name=short", "--accept=[template]",
    )  # fmt: skip
    row = next(row for row in read_metrics(tmp_path / "short") if "train/reward" in row)
    assert 0.0 < row["train/reward"] <= 1.0


def test_a_verb_is_one_file_among_the_verbs(
    own_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is found in the folder of the verbs; nothing else names it."""
    verbs = FOLDER / "somebody" / "verbs"
    monkeypatch.setattr("lit_pretrain.cli.command.verb.CLI", verbs)
    monkeypatch.setattr(lit_pretrain.cli, "__path__", [*lit_pretrain.cli.__path__, str(verbs)])
    assert main(["--help"]) == 0
    assert "count  Count the documents of a prepared dataset." in capsys.readouterr().out
    assert main(["count", str(own_dataset)]) == 0
    assert capsys.readouterr().out == "400\n"


def test_contributings_table_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where a change goes")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 10
    for row in rows:
        paths = re.findall(r"`((?:lit_pretrain|tests)/[^`]*)`", row)
        assert len(paths) >= 2, f"a file and a test: {row}"
        for path in paths:
            assert (ROOT / path.replace("<verb>", "fit")).exists(), path
