"""`lit_pretrain runs`: on folders laid out as training lays them out, and on a real one."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.runs.run_list import differing_options, shortened
from lit_pretrain.report.run_state import STATE

ADAMW = {"class_path": "lit_pretrain.optim.AdamW", "init_args": {"lr": 1e-3, "eps": 1e-8}}


def config(**changes: Any) -> dict[str, Any]:
    model = {
        "net": {"n_layer": 2},
        "objective": {"class_path": "lit_pretrain.objective.CrossEntropy", "init_args": {}},
        "optimizer": ADAMW,
        "adapter": None,
    }
    return {"model": model, "data": {"path": "data/a"}, "max_steps": 40, "name": "x"} | changes


def write_run(
    folder: Path,
    options: dict[str, Any] | None = None,
    *,
    steps: int = 40,
    loss: float | None = 3.5,
    rate: float = 2000.0,
    state: str | None = "finished",
    verb: str = "fit",
    parent: str | None = None,
    started: str = "2026-01-01T00:00:00+0000",
) -> Path:
    """Lay out a run that logs every ten steps."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config() if options is None else options))
    facts = {"verb": verb, "parent": parent, "started": started}
    (folder / "provenance.json").write_text(json.dumps(facts))
    lines: list[dict[str, float]] = [
        {
            "step": step,
            "train/loss": 5.0 - step / 100,
            "progress/tokens": step * 1000.0,
            "throughput/tokens_per_second": rate,
            "time/step_seconds": 0.5,
        }
        for step in range(10, steps + 1, 10)
    ]
    if loss is not None:
        held_out = {"val/loss": loss, "val/bits_per_byte": loss / 2, "time/validation_seconds": 3.0}
        lines.append({"step": steps, **held_out, "progress/tokens": steps * 1000.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state is not None:
        record = {"state": state, "reason": None, "host": "elsewhere", "process": 1, "born": None}
        (folder / STATE).write_text(json.dumps(record))
    return folder


def listed(
    folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, dict[str, Any]]:
    assert main(["runs", str(folder), "--json", *options]) == 0
    return {run["name"]: run for run in json.loads(capsys.readouterr().out)["runs"]}


def test_a_run_that_contradicts_its_forecast_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "outside": (3.5, 40, "val/loss", 3.0, 3.2),
        "within": (3.1, 40, "val/loss", 3.0, 3.2),
        "under way": (3.5, 30, "val/loss", 3.0, 3.2),
        "in bits": (3.5, 40, "val/bits_per_byte", 1.7, 1.8),
        "by a law without an interval": (3.5, 40, "val/loss", None, None),
    }
    for name, (loss, steps, metric, low, high) in cases.items():
        run = write_run(tmp_path / name, loss=loss, steps=steps)
        facts = json.loads((run / "provenance.json").read_text()) | {"forecast": metric}
        (run / "provenance.json").write_text(json.dumps(facts))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        ends = {} if low is None else {"forecast/low": low, "forecast/high": high}
        lines[-1] |= {"forecast/loss": 3.1, **ends}
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = listed(tmp_path, capsys)
    marked = {name: run["contradicts"] for name, run in runs.items()}
    assert marked == dict.fromkeys(cases) | {"outside": [3.0, 3.2]}
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("loss outside its forecast (3.000–3.200)") == 1


def test_figures_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "base")
    parent = str(tmp_path / "base" / "checkpoints" / "step=00000040.ckpt")
    write_run(tmp_path / "sweep" / "lr" / "one", verb="finetune", parent=parent)
    runs = listed(tmp_path, capsys)
    assert list(runs) == ["base", "sweep/lr/one"]
    base = runs["base"]
    figures = {
        "stage": "fit", "state": "finished", "steps": 40, "max_steps": 40, "tokens": 40_000.0,
        "loss": 3.5, "bits_per_byte": 1.75, "tokens_per_second": 2000.0, "time": 23.0,
        "parent": None,
    }  # fmt: skip
    assert {name: base[name] for name in figures} == figures
    assert runs["sweep/lr/one"]["parent"] == "base"
    assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "base          finished    40     40k  3.5000     1.7500     2k  0:23" in printed
    assert "    finetune, from base\n" in printed


def test_runs_are_compared_within_their_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rate in {"a": 0.1, "b": 0.2}.items():
        write_run(tmp_path / name, config(validate_every=rate))
        tuned = config(data={"path": "data/rows"}, validate_every=10 * rate)
        write_run(tmp_path / f"{name}-tuned", tuned, verb="finetune", parent="runs/a")
    runs = listed(tmp_path, capsys)
    assert {name: run["differs"] for name, run in runs.items()} == {
        "a": {"validate_every": 0.1}, "a-tuned": {"validate_every": 1.0},
        "b": {"validate_every": 0.2}, "b-tuned": {"validate_every": 2.0},
    }  # fmt: skip


def test_of_many_options_the_table_has_those_that_tell_runs_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        values = {f"option_{n:02}": i // 2 for n in range(14)} | {"option_own": i}
        write_run(tmp_path / f"{i}", config(**values))
    assert all(len(run["differs"]) == 15 for run in listed(tmp_path, capsys).values())
    assert main(["runs", str(tmp_path)]) == 0
    printed = re.findall(r"fit;.*?--json\)", capsys.readouterr().out, re.DOTALL)
    for i, words in zip(range(3), printed, strict=True):
        assert f"option_own {i}" in words
        assert words.count("option_") == 9
        assert "… 6 more options (--json)" in " ".join(words.split())
    for i in range(3):
        (tmp_path / f"{i}" / "config.yaml").write_text(
            yaml.safe_dump(config(model={"net": {"n_layer": i}}, option_own=i))
        )
        facts = {"verb": "fit", "parent": "runs/a", "started": "2026-01-01T00:00:00+0000"}
        (tmp_path / f"{i}" / "provenance.json").write_text(json.dumps(facts))
    assert main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "n_layer" not in said, "the parent says it"
    assert "fit, from runs/a; option_own 2" in said


@pytest.mark.parametrize(
    ("state", "steps", "summary", "expected"),
    [
        ("running", 20, False, "running"),
        ("running", 0, False, "running"),
        ("stopped", 20, False, "stopped"),
        ("stopped", 0, False, "not started"),
        ("failed", 0, False, "failed"),
        ("finished", 40, True, "finished"),
        ("running", 40, True, "running"),  # goes on beyond what it once finished
        (None, 40, True, "finished"),
        (None, 20, False, "stopped"),
        (None, 0, False, "not started"),
    ],
)
def test_states(
    state: str | None,
    steps: int,
    summary: bool,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run(tmp_path / "run", steps=steps, loss=None, state=state)
    if summary:
        (run / "summary.md").write_text("# run\n")
    assert listed(tmp_path, capsys)["run"]["state"] == expected


def test_what_has_no_validation_shows_the_loss_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", steps=20, loss=None, state="stopped")
    (run / "metrics.jsonl").open("a").write('{"step": 30, "train/lo')  # the line being written
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step=00000025.ckpt").touch()
    found = listed(tmp_path, capsys)["run"]
    assert (found["steps"], found["loss"], found["train_loss"]) == (25, None, 4.8)
    assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "25/40" in printed
    assert "4.8000*" in printed
    assert "no validation yet" in printed


def test_a_stage_is_named_by_its_objective_and_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = config()["model"]
    dpo = model | {"objective": {"class_path": "lit_pretrain.objective.DPO"}}
    write_run(tmp_path / "dpo", config(model=dpo), verb="posttrain")
    adapter = {"rank": 4, "dora": False, "quantize": "nf4"}
    write_run(tmp_path / "task", config(model=dpo | {"adapter": adapter}), verb="finetune")
    runs = listed(tmp_path, capsys)
    assert [run["stage"] for run in runs.values()] == ["posttrain DPO", "finetune DPO QLoRA"]


def test_an_imported_run_is_listed_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", config(max_steps=50))
    bare = {"model": {"net": {}}, "data": {}, "max_steps": 0}
    run = write_run(tmp_path / "theirs", bare, verb="import", state=None, parent="models/x")
    (run / "metrics.jsonl").unlink()
    runs = listed(tmp_path, capsys)
    assert runs["theirs"]["state"] == "finished"
    assert runs["theirs"]["parent"] == "models/x"
    assert runs["theirs"]["differs"] == {}
    assert runs["one"]["differs"] == {"max_steps": 40}


def test_the_latest_config_of_a_resumed_run_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    for n in (1, 2, 10):
        (run / f"config.resume-{n}.yaml").write_text(yaml.safe_dump(config(max_steps=100 + n)))
    assert listed(tmp_path, capsys)["run"]["max_steps"] == 110


# ------------------------------------------------------------------ order


def test_sorting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, loss, lr, day in (("c", 3.0, 1e-3, 1), ("a", 2.0, 1e-2, 2), ("b", None, 1e-4, 3)):
        optimizer = ADAMW | {"init_args": {"lr": lr, "eps": 1e-8}}
        options = config(model=config()["model"] | {"optimizer": optimizer})
        write_run(tmp_path / name, options, loss=loss, started=f"2026-01-0{day}T00:00:00+0000")
    expected = {
        (): "cab", ("--sort", "name"): "abc", ("--sort", "loss"): "acb",
        ("--sort", "model.optimizer.lr"): "bca",
    }  # fmt: skip
    for options, order in expected.items():
        assert "".join(listed(tmp_path, capsys, *options)) == order
    assert main(["runs", str(tmp_path), "--sort", "los"]) == 2
    assert "Did you mean 'loss'?" in capsys.readouterr().err


# ------------------------------------------------------------------ what is no run


BROKEN = {
    "an empty config": ("config.yaml", b""),
    "a config that is a list": ("config.yaml", b"[1, 2]"),
    "a config of something else": ("config.yaml", b"a: 1"),
    "a config with a bad model": ("config.yaml", b"model: 3\nmax_steps: 4"),
    "a config that is no YAML": ("config.yaml", b"a: [1"),
    "a config that is no text": ("config.yaml", b"\xff\xfe\x00"),
    "half a provenance": ("provenance.json", b'{"verb": "f'),
    "a provenance that is a list": ("provenance.json", b"[]"),
    "no provenance": ("provenance.json", None),
    "a damaged state": ("state.json", b"{}"),
    "no config": ("config.yaml", None),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_run_is_named_and_the_others_are_listed(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "sweep" / "bad")
    name, content = BROKEN[what]
    (bad / name).unlink()
    if content is not None:
        (bad / name).write_bytes(content)
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    (line,) = [line for line in shown.out.splitlines() if line.startswith("damaged: ")]
    assert line.startswith(f"damaged: sweep/bad: {name}")
    assert "good  finished" in shown.out
    assert list(listed(tmp_path, capsys)) == ["good"]


@pytest.mark.parametrize(
    "line", [b"xxx", b'{"train/loss": 1}', b"[]", b'{"step": 45, "val/loss": "low"}', b"\xff\xff"]
)
def test_damaged_lines_are_left_out_and_counted(
    line: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = write_run(tmp_path / "run") / "metrics.jsonl"
    metrics.write_bytes(line + b"\n" + metrics.read_bytes())
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("damaged: run: metrics.jsonl: 1 of its lines left out\n")
    assert shown.err == ""
    assert listed(tmp_path, capsys)["run"]["loss"] == 3.5


def test_foreign_folders_share_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "sweep" / "one")
    for place in ("sweep/logs", "corpus/tensorboard/deep", "corpus/figures", ".cache/x"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "sweep" / "back").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no runs in: corpus, sweep/logs"
    assert lines[-2] == "    fit"


def test_a_run_folder_stands_for_itself_and_an_empty_folder_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "one")
    assert list(listed(run, capsys)) == ["one"]
    (tmp_path / "empty").mkdir()
    assert main(["runs", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path / 'empty'}\n"
    for place, problem in ((run / "config.yaml", "not a folder"), (tmp_path / "x", "not exist")):
        assert main(["runs", str(place)]) == 2
        assert problem in capsys.readouterr().err


def test_a_loss_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "bad", loss=math.nan)
    write_run(tmp_path / "good")
    runs = listed(tmp_path, capsys, "--sort", "loss")  # strict JSON has no NaN
    assert [(name, run["loss"]) for name, run in runs.items()] == [("good", 3.5), ("bad", None)]
    assert main(["runs", str(tmp_path)]) == 0
    assert "   nan  " in capsys.readouterr().out


# ------------------------------------------------------------------ options that differ


def test_options_that_differ() -> None:
    muon = {"class_path": "lit_pretrain.optim.MuonAdamW", "init_args": {"matrix_lr": 0.04}}
    model = config()["model"]
    faster = {"class_path": ADAMW["class_path"], "init_args": {"lr": 1e-2, "eps": 1e-8}}
    configs = [
        config(name="a", runs="x", data={"path": "data/a", "weights": {"code": 1}}),
        config(name="b", model=model | {"optimizer": faster}),
        config(name="c", model=model | {"optimizer": muon, "adapter": {"rank": 4}}),
    ]
    assert differing_options(configs) == [
        {
            "model.optimizer": "AdamW", "model.optimizer.lr": 1e-3, "model.adapter": None,
            "data.weights": {"code": 1},
        },
        {"model.optimizer": "AdamW", "model.optimizer.lr": 1e-2, "model.adapter": None},
        {"model.optimizer": "MuonAdamW", "model.adapter": {"rank": 4}},
    ]  # fmt: skip
    assert differing_options([config(), config()]) == [{}, {}]
    later = config(statistics_every=0, local_runs="runs", model=model | {"new_tokens": None})
    assert differing_options([config(), later]) == [{}, {}]
    assert differing_options([config(), config(statistics_every=5)]) == [
        {}, {"statistics_every": 5},
    ]  # fmt: skip
    assert differing_options([config()]) == [{}]
    assert differing_options([]) == []


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, "1"), (0, None), ("", None), ([1], [2]), ({"a": 1}, None)]
)
def test_values_that_differ(one: Any, other: Any) -> None:
    assert differing_options([{"x": one}, {"x": other}]) == [{"x": one}, {"x": other}]


def test_mappings_without_a_class_are_compared_key_by_key() -> None:
    configs = [{"data": {"weights": {"a": 1}}}, {"data": {"weights": {"a": 1, "b": 2}}}]
    assert differing_options(configs) == [{}, {"data.weights.b": 2}]


def test_long_values_are_shortened() -> None:
    folder = "/scratch/group/corpora/english"
    assert shortened([f"{folder}/web/v1", f"{folder}/books/v1", None]) == [
        "…/web/v1", "…/books/v1", "none",
    ]  # fmt: skip
    assert shortened(["s3://store/a/x", "s3://store/b/x"]) == ["…/a/x", "…/b/x"]
    assert shortened(["data/a", "other/b"]) == ["data/a", "other/b"]
    assert shortened([f"{folder}/a"]) == [f"{folder}/a"]
    assert max(map(len, shortened(["x" * 100, "y"]))) < 60


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_lines_fit_the_terminal(
    columns: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for n in range(3):
        optimizer = ADAMW | {"init_args": {"lr": 10.0**-n, "eps": 1e-8 * n}}
        options = config(
            model=config()["model"] | {"optimizer": optimizer}, data={"path": f"/very/long/{n}" * 9}
        )
        write_run(tmp_path / f"a_run_with_a_long_name_in_a_sweep_{n}" / "run", options)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(columns, 78)
    assert (lines[1] == "a_run_with_a_long_name_in_a_sweep_0/run") == (columns < 100)
    assert sum("model.optimizer.lr 1" in line for line in lines) == 1


def test_a_real_run(chat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(chat_run, tmp_path / "talker")
    run = listed(tmp_path, capsys)["talker"]
    assert (run["stage"], run["state"], run["steps"], run["max_steps"]) == ("fit", "finished", 1, 1)
    assert min(run["loss"], run["tokens"], run["tokens_per_second"], run["time"]) > 0


def test_a_line_that_was_changed_is_left_out(
    chat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(chat_run, tmp_path / "talker")
    metrics = tmp_path / "talker" / "metrics.jsonl"
    metrics.write_text(re.sub(r'(?<="val/loss": )\d', "0", metrics.read_text()))
    assert listed(tmp_path, capsys)["talker"]["loss"] is None  # the digest of the line says so
    assert main(["runs", str(tmp_path)]) == 0
    assert "damaged: talker: metrics.jsonl: 1 of its lines left out" in capsys.readouterr().out
