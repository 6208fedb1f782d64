"""StepTrace: the trace opens, the table names operations, and the steps compute the same."""

import json
import re
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.step_trace import StepTrace
from lit_pretrain.report.run_folder import read_metrics

TINY = [
    "fit", "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=1",
    "--model.net.ffn_width=32", "--model.compile=off", "--data.seq_len=16",
    "--data.global_batch_tokens=64", "--data.micro_batch_size=4", "--data.val_tokens=64",
    "--max_steps=9", "--log_every=1", "--sample_prompts=[]", "--validate_every=6",
    "--trainer.accelerator=cpu",
]  # fmt: skip


def test_steps_are_traced_and_stay_the_same(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"--data.path={dataset}", f"--runs={tmp_path}"]
    assert main([*TINY, *where, "--name=plain"]) == 0
    capsys.readouterr()
    assert main([*TINY, *where, "--name=traced", "--profile"]) == 0
    printed = capsys.readouterr().out
    losses = {
        name: [row["train/loss"] for row in read_metrics(tmp_path / name) if "train/loss" in row]
        for name in ("plain", "traced")
    }
    assert losses["traced"] == losses["plain"]
    assert len(losses["plain"]) == 9

    folder = tmp_path / "traced" / "profile"
    assert sorted(file.name for file in folder.iterdir()) == ["steps-5-7.json", "steps-5-7.txt"]
    events = json.loads((folder / "steps-5-7.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"step 5", "step 6", "step 7"} <= names
    assert not {"step 3", "step 8"} & names
    assert any("optimizer_step" in str(name) for name in names), "parts of a step have names"
    assert any("validation" in str(name).lower() for name in names), "after step 6"

    table = (folder / "steps-5-7.txt").read_text()
    assert table in printed
    assert f"trace: {folder / 'steps-5-7.json'}" in printed
    head, columns, *rows = table.splitlines()
    assert re.match(r"profile of steps 5 to 7: [\d.]+ ms a step, \d+% of it in operations", head)
    assert columns.split("  ")[0] == "operation"
    assert len(rows) == 10
    costs = [float(re.split(r"\s{2,}", row)[1]) for row in rows]
    assert costs == sorted(costs, reverse=True)
    assert all(len(line) <= 80 for line in table.splitlines())
    assert not any(row.startswith(("step ", "ProfilerStep", "[")) for row in rows)


@pytest.mark.parametrize(
    ("total", "skipped", "count"), [(100, 4, 3), (7, 4, 3), (5, 2, 3), (3, 0, 3), (1, 0, 1)]
)
def test_short_runs_are_traced_at_their_end(total: int, skipped: int, count: int) -> None:
    trace = StepTrace(Path("unused"), 0, total, on_done=lambda seconds: None)
    assert (trace.skipped, trace.count) == (skipped, count)


def test_profile_and_a_profiler_of_the_trainer_are_one_too_many(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--profile", "--trainer.profiler=simple", f"--data.path={dataset}"]
    assert main([*TINY, *options, f"--runs={tmp_path}", "--name=run"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err
