"""Replay: the bits of the run, what a step has read and done, and where a NaN comes from."""

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.cli.replay.replay_run import attempt_of
from lit_pretrain.data import TextData
from lit_pretrain.report.run_folder import METRICS, METRICS_DIGESTS, read_metrics

RunCli = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8
RUN = (
    "fit", "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.dropout=0.1", "--model.compile=off", "--data.seq_len=32",
    "--data.micro_batch_size=2", "--data.global_batch_tokens=256", "--data.val_tokens=512",
    f"--max_steps={STEPS}", "--log_every=2", "--checkpoint_every=3", "--keep_checkpoints=9",
    "--sample_prompts=[]", "--trainer.accelerator=cpu",
)  # fmt: skip
PLANTED = '''
"""A block that breaks once a weight of the second layer is large, a loss that breaks for a text."""
import torch
from lit_pretrain.model import Block
from lit_pretrain.objective import CrossEntropy

LIMIT = float("inf")
POISON = ()


class Planted(Block):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.number = layer

    def transform(self, x_BTD, shared, value_BTC):
        x_BTD = super().transform(x_BTD, shared, value_BTC)
        large = self.feed_forward.down_proj.weight.norm() > LIMIT
        return x_BTD * torch.where(large & (self.number == 1), torch.nan, 1.0)


class Poisoned(CrossEntropy):
    def forward(self, scores, batch):
        total, count, metrics = super().forward(scores, batch)
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            if tuple(tokens) == POISON:
                last = batch.doc_BT[row] == batch.doc_BT[row, -1]
                nll_BT = metrics["nll_BT"].clone()
                nll_BT[row] = torch.where(last, torch.nan, nll_BT[row])
                metrics |= {"nll_BT": nll_BT, "loss_B": nll_BT.sum(dim=1)}
                total = total * torch.nan
        return total, count, metrics
'''


def fit(dataset: Path, runs: Path, name: str, *options: str) -> int:
    return main([*RUN, f"--data.path={dataset}", f"--runs={runs}", f"--name={name}", *options])


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("replayed")
    assert fit(dataset, runs, "run") == 0
    return runs / "run"


def report_of(run: Path, step: int, place: Path, *options: str) -> dict:
    """Replay a step in this process and read what it reports."""
    code = main(["replay", str(run), "--step", str(step), f"--report={place}.json", *options])
    assert code == 0
    return json.loads(Path(f"{place}.json").read_text())


# ---------------------------------------------------------------------- the same bits


def test_losses_are_equal_to_the_last_bit_and_nothing_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(run)
    found = [report_of(run, step, tmp_path / str(step)) for step in (4, 5)]
    assert fingerprint(run) == before
    said = capsys.readouterr().out
    assert f"from {run}/checkpoints/step=00000003.ckpt (step 3)" in said
    assert "equal to the last bit: losses and gradient norms of 2 lines" in said
    for its in found:
        # Step 4 is the first of its window: its own loss is known once step 5 is made.
        assert (its["begin"], its["compared"], its["differences"]) == (3, [4, 6], [])
    line = next(line for line in read_metrics(run) if line["step"] == 6)
    assert sum(its["grad_norm"] for its in found) / 2 == pytest.approx(line["train/grad_norm"])
    nats = sum(document["nats"] for its in found for document in its["documents"])
    tokens = sum(document["tokens"] for its in found for document in its["documents"])
    assert nats / tokens == pytest.approx(line["train/loss"], rel=1e-6)


def test_a_step_before_the_first_checkpoint_begins_with_the_first_weights(
    run: Path, tmp_path: Path
) -> None:
    found = report_of(run, 1, tmp_path / "report")
    assert (found["begin"], found["compared"], found["differences"]) == (0, [2], [])


def test_a_damaged_checkpoint_is_passed_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    damaged = copy / "checkpoints" / "step=00000006.ckpt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    found = report_of(copy, 7, tmp_path / "report")
    assert (found["begin"], found["compared"], found["differences"]) == (3, [4, 6, 8], [])
    assert "step=00000006.ckpt is torn or damaged" in capsys.readouterr().err


def test_the_first_difference_is_named_with_what_may_be_the_reason(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    lines = [json.loads(line) for line in (copy / METRICS).read_text().splitlines()]
    recorded = next(line for line in lines if line["step"] == 6 and "train/loss" in line)
    right = recorded["train/loss"]
    recorded["train/loss"] = right * (1 + 2**-52)
    (copy / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (copy / METRICS_DIGESTS).unlink()
    file = copy / "provenance.json"
    facts = json.loads(file.read_text())
    facts["versions"]["torch"] = "1.0"
    facts["threads"] = 64
    facts.pop("sha256", None)
    file.write_text(json.dumps({k: v for k, v in facts.items() if k != "digest"}))
    assert main(["replay", str(copy), "--step", "5"]) == 2
    said = capsys.readouterr().err
    assert "train/loss of the line of step 6" in said
    assert f"is {right!r}, recorded is {recorded['train/loss']!r}" in said
    assert "torch was 1.0, and is " in said
    assert "the number of threads was 64, and is 1" in said
    assert main(["replay", str(copy), "--step", "3"]) == 0  # the line of step 4 is sound


# ---------------------------------------------------------------------- what happened


def test_documents_and_tokens_are_those_of_the_order(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report_of(run, 6, tmp_path / "report")
    capsys.readouterr()
    assert main(["inspect", "order", str(run), "--step=6", "--json_lines=true"]) == 0
    order = {row["sample"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {document["sample"] for document in found["documents"]} == order.keys()
    for document in found["documents"]:
        row = order[document["sample"]]
        assert document["origin"] in row["documents"]
        assert document["source"] == row["source"]
    means = [document["mean"] for document in found["documents"]]
    assert means == sorted(means, reverse=True)
    losses = [token["nats"] for token in found["tokens"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 100
    for token in found["tokens"][:5]:  # the text around it is that of its document
        name, row = token["origin"].rsplit(":", 1)
        text = json.loads(Path(name).read_text().splitlines()[int(row) - 1])["text"]
        assert token["text"].strip() in text.replace("\n", "\\n") + "<|endoftext|>"
    assert found["layers"].keys() == {"0", "1"}
    assert found["roles"].keys() >= {"matrix", "embedding", "head"}
    assert found["not_finite"] is None
    assert not found["bad_gradients"]
    assert all(0 < its["update_ratio"] < 1 for its in found["layers"].values())


def test_markdown_says_what_is_printed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "report.md"
    assert main(["replay", str(run), "--step=7", f"--report={place}", "--documents=3"]) == 0
    printed, written = capsys.readouterr().out, place.read_text()
    assert written.startswith(f"# Step 7 of {run}\n")
    for title in ("Not finite", "Documents by loss per token", "Tokens with the largest loss"):
        assert f"\n{title}\n" in printed
        assert f"\n## {title}\n" in written
    assert written.count("\n| ") > printed.count("\n")  # all documents and tokens


# ---------------------------------------------------------------------- a NaN


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the user's in the working directory."""
    (tmp_path / "planted_faults.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("planted_faults")
    sys.modules.pop("planted_faults")


def step_5(dataset: Path) -> tuple[TextData, Any]:
    """The data of `RUN`, and all rows of its step 5."""
    data = TextData(str(dataset), seq_len=32, global_batch_tokens=256, micro_batch_size=8)
    return data, data.step_batches(5, 8)[0]


def norm_of(run: Path, step: int) -> float:
    saved = torch.load(run / "checkpoints" / f"step={step:08d}.ckpt", weights_only=True)
    weight = saved["state_dict"]["net.blocks.1.feed_forward.down_proj.weight"]
    return float(weight.norm())


def test_a_nan_that_a_weight_makes_is_found_in_its_module(
    dataset: Path,
    tmp_path: Path,
    planted: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model.net.block=planted_faults.Planted", "--checkpoint_every=2"]
    assert fit(dataset, tmp_path, "whole", *options) == 0
    before, after = (norm_of(tmp_path / "whole", step) for step in (4, 6))
    assert before < after
    monkeypatch.setattr(planted, "LIMIT", (before + after) / 2)
    assert fit(dataset, tmp_path, "broken", *options) == 3
    said = capsys.readouterr().err
    step = int(said.split("error: step ")[1].split(":")[0])
    assert step in (5, 6)
    run = tmp_path / "broken"
    assert main(["replay", str(run), "--step", str(step)]) == 2
    assert "model.net.block='planted_faults.Planted'" in capsys.readouterr().err
    found = report_of(run, step, tmp_path / "report", "--trust=true")
    said = capsys.readouterr().out
    assert "the first output that is not finite is that of blocks.1 (Planted), sample " in said
    assert "its inputs and weights are finite" in said
    assert "stopped before the update" in found["stopped"]
    bad = found["not_finite"]
    assert (bad["module"], bad["kind"], bad["place"]) == ("blocks.1", "Planted", 0)
    assert bad["origin"] in {document["origin"] for document in found["documents"]}
    assert found["bad_gradients"]
    assert found["differences"] == []
    # One step earlier all is well.
    assert report_of(run, step - 1, tmp_path / "before", "--trust=true")["not_finite"] is None


def test_a_nan_that_a_document_makes_is_found_in_its_row(
    dataset: Path,
    tmp_path: Path,
    planted: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, batch = step_5(dataset)
    row = next(b for b, doc in enumerate(batch.doc_BT.tolist()) if doc[0] != doc[-1])
    monkeypatch.setattr(planted, "POISON", tuple(batch.tokens_BT[row].tolist()))
    assert fit(dataset, tmp_path, "poisoned", "--model.objective=planted_faults.Poisoned") == 3
    assert "error: step 5: the gradient norm is nan" in capsys.readouterr().err
    found = report_of(tmp_path / "poisoned", 5, tmp_path / "report", "--trust=true")
    said = capsys.readouterr().out
    assert "all modules have finite outputs, but the loss is not finite" in said
    assert "equal to the last bit" in said
    bad = [document for document in found["documents"] if document["mean"] == "nan"]
    assert bad == found["documents"][: len(bad)]
    part = data.row_parts(batch)[row][-1]
    assert [(its["sample"], its["origin"]) for its in bad] == [
        (int(batch.index_B[row]), part.origin)
    ]
    assert all(token["origin"] == part.origin for token in found["tokens"][: bad[0]["tokens"]])


# ---------------------------------------------------------------------- rows, errors, ranks


def test_a_run_over_rows_names_files_and_rows(chat_run: Path, tmp_path: Path) -> None:
    found = report_of(chat_run, 0, tmp_path / "report")
    assert found["differences"] == []
    assert len(found["documents"]) >= 4
    assert all("sums" in document["origin"] for document in found["documents"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "prompts"])
def test_pairs_and_prompts_are_replayed_with_what_each_row_is(
    kind: str, chat_run: Path, tmp_path: Path
) -> None:
    lines = [{"prompt": f"{i}?", "chosen": f"{i}.", "rejected": "No."} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source, data, model, notes = {
        "pairs": (
            {"path": str(tmp_path / "rows.jsonl"), "format": "preference"},
            {"class_path": "lit_pretrain.data.PreferenceData"},
            {"objective": {"class_path": "lit_pretrain.objective.DPO"}},
            {"chosen", "rejected"},
        ),
        "prompts": (
            {"task": {"name": "addition", "digits": 1, "rows": 40}},
            {"class_path": "lit_pretrain.data.PromptData", "init_args": {"group_size": 2}},
            {
                "objective": {"class_path": "lit_pretrain.objective.GRPO"},
                "rollout": {
                    "rewards": {"odd": {"path": "Format", "options": {"pattern": ".*[13579]"}}},
                    "max_completion_tokens": 4,
                },
            },
            {""},
        ),
    }[kind]
    data["init_args"] = data.get("init_args", {}) | {
        "sources": {"own": source}, "seq_len": 64, "global_batch_rows": 4, "micro_batch_size": 4,
        "validation": 0.2,
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model": model, "data": data, "max_steps": 2}))
    run = [
        "posttrain", f"--from={chat_run}", f"--config={config}", "--log_every=1",
        "--model.compile=off", "--sample_prompts=[]", "--trainer.accelerator=cpu",
        f"--runs={tmp_path}", "--name=run",
    ]  # fmt: skip
    assert main(run) == 0
    found = report_of(tmp_path / "run", 1, tmp_path / "report")
    assert (found["compared"], found["differences"]) == ([1, 2], [])
    assert len(found["rows"]) == 8
    assert {row["note"] for row in found["rows"]} == notes
    losses = [row["loss"] for row in found["rows"]]
    assert losses == sorted(losses, reverse=True)
    assert {document["note"] for document in found["documents"]} <= notes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["{run}", "--step=8"], "has 8 steps, from 0 to 7"),
        (["{run}", "--step=-1"], "--step=-1: the first step is 0"),
        (["{run}", "--step=1", "--documents=0"], "--documents=0 must be at least 1"),
        (["{run}", "--step=1", "--report=x.txt"], "must end in .md for Markdown or in .json"),
        (["{run}/checkpoints/step=00000003.ckpt", "--step=3"], "Name its folder"),
        (["{run}/nowhere", "--step=3"], "does not exist; give a run folder"),
        (["{run}", "--step=1", "--path=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_a_line(
    options: list[str], reason: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(run)
    assert main(["replay", *(option.format(run=run) for option in options)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "Traceback" not in said
    assert fingerprint(run) == before


def test_a_run_that_no_training_wrote_has_no_steps(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", str(run), str(tmp_path / "mean"), "--last=2"]) == 0
    assert main(["replay", str(tmp_path / "mean"), "--step=1"]) == 2
    assert "was written by `average` and not by training" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ["--trainer.strategy=ddp"],
        ["--trainer.strategy=fsdp", "--sharded_checkpoints=true"],
        ["--parallel.tp=2"],
        ["--parallel.cp=2"],
    ],
    ids=["ddp", "fsdp", "tp", "cp"],
)
def test_two_ranks_are_replayed_to_the_bit(
    layout: list[str], dataset: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    given = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=run"]
    assert run_cli(*RUN, *given, "--trainer.devices=2", *layout).returncode == 0
    place = tmp_path / "report.json"
    done = run_cli("replay", str(tmp_path / "run"), "--step=4", f"--report={place}")
    assert done.returncode == 0, done.stderr
    found = json.loads(place.read_text())
    # The line of step 6 holds step 5, which reads the weights that step 4 has left.
    assert (found["compared"], found["differences"]) == ([4, 6], [])
    documents = found["documents"]
    assert len({document["sample"] for document in documents}) == 8
    nats, tokens = (sum(document[name] for document in documents) for name in ("nats", "tokens"))
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-6)


def test_a_spike_is_looked_at_after_the_run_has_gone_back_from_it(
    dataset: Path,
    tmp_path: Path,
    planted: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, batch = step_5(dataset)
    monkeypatch.setattr(planted, "POISON", tuple(batch.tokens_BT[0].tolist()))
    options = [
        "--model.objective=planted_faults.Poisoned", "--guard.action=rewind", "--guard.margin=1",
        "--checkpoint_every=2",
    ]  # fmt: skip
    assert fit(dataset, tmp_path, "rewound", *options) == 0
    run = tmp_path / "rewound"
    assert "the run goes back to step 4 and leaves out the rows of steps 4:7" in (
        capsys.readouterr().err
    )
    before = fingerprint(run)
    after = report_of(run, 5, tmp_path / "after", "--trust=true")
    assert (after["differences"], after["stopped"]) == ([], None)
    assert "nan" not in {document["mean"] for document in after["documents"]}
    spike = report_of(run, 5, tmp_path / "spike", "--trust=true", "--before_rewind=true")
    assert "nan" in spike["stopped"]
    assert spike["begin"] == 4
    [bad] = [document for document in spike["documents"] if document["mean"] == "nan"]
    assert bad["sample"] == int(batch.index_B[0])
    assert fingerprint(run) == before
    capsys.readouterr()
    refused = ["replay", str(run), "--step=2", "--trust=true", "--before_rewind=true"]
    assert main(refused) == 2
    assert "has not gone back from step 2 (went back to step 4" in capsys.readouterr().err


def test_a_run_that_went_on_longer_is_replayed_in_both_its_attempts(
    dataset: Path, tmp_path: Path
) -> None:
    constant = ["--model.schedule.kind=constant", "--model.schedule.warmup=0"]
    assert fit(dataset, tmp_path, "run", *constant, "--max_steps=4") == 0
    longer = ["--resume=auto", "--data.micro_batch_size=4"]
    assert fit(dataset, tmp_path, "run", *constant, *longer) == 0
    run = tmp_path / "run"
    assert attempt_of(run, 3).config.name == "config.4-steps.yaml"
    assert attempt_of(run, 4).config.name == "config.resume-1.yaml"
    for step in (3, 6):
        found = report_of(run, step, tmp_path / str(step))
        assert (found["compared"][-1], found["differences"]) == (step // 2 * 2 + 2, [])
