"""The run folder: no overwriting, and metrics that continue where a checkpoint stands."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.errors import UserError
from lit_pretrain.files import seal_json, write_file
from lit_pretrain.plain_data import dump_config, read_config
from lit_pretrain.report.run_folder import (
    CONFIG,
    METRICS,
    MetricsFile,
    check_run_unused,
    make_run_folder,
    no_run,
    provenance,
    read_metrics,
    read_provenance,
    revision,
)


def test_a_folder_with_a_run_is_not_given_to_another(tmp_path: Path) -> None:
    make_run_folder(tmp_path / "run")
    check_run_unused(tmp_path / "run")  # still empty
    (tmp_path / "run" / "config.yaml").write_text("max_steps: 1\n")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    check_run_unused(tmp_path / "run")  # its start failed before the first step
    for made in ("metrics.jsonl", "checkpoints/step=00000001.ckpt"):
        (tmp_path / "run" / made).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / made).write_text("{}")
        with pytest.raises(UserError, match="already holds a run"):
            check_run_unused(tmp_path / "run")
        (tmp_path / "run" / made).unlink()
    make_run_folder(tmp_path / "run")  # of a run that goes on
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make_run_folder(tmp_path / "file" / "run")


def test_metrics_go_on_after_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / METRICS
    metrics = MetricsFile(file, first_step=0)
    for step in range(1, 6):
        metrics.write(step, {"train/loss": 1 / step})
    with file.open("a") as torn:
        torn.write('{"step": 6, "train/lo')
    MetricsFile(file, first_step=3).write(4, {"train/loss": 7.0})
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 7.0),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is not a run folder: it has no metrics\.jsonl"):
        read_metrics(tmp_path / "empty")


def test_what_is_no_run_says_what_it_is_and_which_run_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("runs/base", "runs/tuned", "elsewhere/other"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / CONFIG).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for place, said in {
        "base": "base does not exist; give a run folder such as runs/NAME. Did you mean"
        " 'runs/base'?",
        "runs/bsae": "Did you mean 'runs/base'?",
        "elsewhere/othr": "Did you mean 'elsewhere/other'?",
        "runs/zzz": "give a run folder such as runs/NAME.",
        "runs": "runs is a folder of runs; give one of them: runs/base, runs/tuned",
        "data": "data is a dataset, which `lit_pretrain prepare` wrote",
        "empty": "empty is not a run folder: it has no checkpoint",
        "runs/base": "runs/base is a run folder, but it has no checkpoint",
    }.items():
        assert said in str(no_run(place, "it has no checkpoint"))
    assert "Did you mean" not in str(no_run("runs/zzz", "it has no checkpoint"))


def test_provenance_names_versions_and_survives_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() is None
    monkeypatch.setattr("sys.argv", ["/somewhere/lit_pretrain", "fit", "--name", "a b"])
    facts = json.loads(json.dumps(provenance({"parent": None})))
    assert facts["command"] == "lit_pretrain fit --name 'a b'"
    assert facts["revision"] is None
    assert facts["versions"]["torch"].startswith("2.")
    assert "not installed" not in facts["versions"].values()
    assert facts["parent"] is None


def metrics(run: Path, steps: int = 10) -> Path:
    file = MetricsFile(run / METRICS, first_step=0)
    for step in range(1, steps + 1):
        file.write(step, {"train/loss": 10.0 / step})
    return run / METRICS


def test_a_damaged_line_is_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that still is JSON; a resume keeps all lines behind it."""
    file = metrics(tmp_path)
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace("3.33", "3.43")
    lines[5] = lines[5][:-4]
    file.write_text("".join(f"{line}\n" for line in lines))
    sound = [1, 2, 4, 5, 7, 8, 9, 10]
    assert [line["step"] for line in read_metrics(tmp_path)] == sound
    assert "2 of its lines are damaged or lost" in capsys.readouterr().err
    MetricsFile(file, first_step=9)
    assert "2 of its lines" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(tmp_path)] == sound[:-1]
    assert capsys.readouterr().err == ""  # the resume has put it right


@pytest.mark.parametrize("keep", [0, 1, 150])
def test_a_history_is_not_lost_silently(
    tmp_path: Path, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = metrics(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    read_metrics(tmp_path)
    assert "lines are damaged or lost" in capsys.readouterr().err
    file.unlink()
    MetricsFile(file, first_step=8, expected=True)
    assert "has lost its lines up to step 8" in capsys.readouterr().err


def test_every_flipped_bit_of_the_metrics_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = metrics(tmp_path, steps=3)
    data = file.read_bytes()
    before = read_metrics(tmp_path)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert read_metrics(tmp_path) != before
        assert "warning: " in capsys.readouterr().err, bit


def test_a_line_without_digest_is_the_last_of_a_killed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = metrics(tmp_path)
    with file.open("a") as opened:
        opened.write('{"step": 11, "train/loss": 1.0}\n')
    assert len(read_metrics(tmp_path)) == 11
    (tmp_path / "metrics.xxh3").unlink()  # as older versions wrote it
    assert len(read_metrics(tmp_path)) == 11
    assert capsys.readouterr().err == ""


FACTS = {
    "verb": "fit", "started": "today", "precision": "32-true", "parameters": {"total": 1},
    "revision": None, "data": "x", "tokenizer_hash": "t", "parent": None,
}  # fmt: skip


def records(run: Path) -> dict[Path, Callable[[], object]]:
    """Write the small files of a run, each with its reader."""
    run.mkdir()
    stage = {
        "name": "a", "verb": "fit", "started": "today", "revision": None, "parent": None,
        "data": None,
    }  # fmt: skip
    lineage = Lineage({"tokenizer": "t", "bos_id": 3}, (stage,))
    config = {"model": {"net": {"width": 32, "norm_eps": 1e-6}}, "max_steps": 10}
    write_file(run / "provenance.json", seal_json(FACTS))
    write_file(run / "lineage.json", lineage.dump())
    write_file(run / "config.yaml", dump_config(config))
    return {
        run / "provenance.json": lambda: read_provenance(run),
        run / "lineage.json": lambda: Lineage.read(run),
        run / "config.yaml": lambda: read_config(run / "config.yaml"),
    }


def test_a_flipped_bit_of_a_record_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """What changes nothing is the name of the digest, or white space."""
    refused = 0
    for file, read in records(tmp_path / "run").items():
        data, before = file.read_bytes(), read()
        for bit in range(0, 8 * len(data), 5):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            try:
                assert read() == before, (file.name, bit)
            except UserError:
                refused += 1
        file.write_bytes(data)
    assert refused > 1000


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"a": 1}', "half", "\x00", "\xff", "["])
def test_other_content_is_refused_in_a_message(tmp_path: Path, text: str) -> None:
    for file, read in records(tmp_path / "run").items():
        data = file.read_bytes()
        file.write_bytes(text.encode("latin-1"))
        if file.name == "config.yaml" and text in ("{}", '{"a": 1}'):
            assert read() is not None  # what must stand in it depends on the reader
            continue
        with pytest.raises(UserError, match=file.name):
            read()
        for length in (len(data) // 2, len(data) - 20):
            file.write_bytes(data[:length])
            with pytest.raises(UserError, match=file.name):
                read()


def test_an_edited_config_says_how_to_keep_the_edit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    records(run)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("32", "64"))
    with pytest.raises(UserError, match="delete its first line"):
        read_config(run / "config.yaml")
    file.write_text(file.read_text().partition("\n")[2])
    assert read_config(run / "config.yaml")["model"]["net"]["width"] == 64
