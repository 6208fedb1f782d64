"""The run folder: no overwriting, and metrics that continue where a checkpoint stands."""

import json
from pathlib import Path

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import (
    METRICS,
    MetricsFile,
    check_run_unused,
    make_run_folder,
    provenance,
    read_metrics,
    revision,
)


def test_a_folder_with_a_run_is_not_given_to_another(tmp_path: Path) -> None:
    make_run_folder(tmp_path / "run")
    check_run_unused(tmp_path / "run")  # still empty
    (tmp_path / "run" / "config.yaml").write_text("max_steps: 1\n")
    with pytest.raises(UserError, match="already holds a run"):
        check_run_unused(tmp_path / "run")
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
    with pytest.raises(UserError, match="is not a run folder"):
        read_metrics(tmp_path / "elsewhere")


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
