"""A dataset's directory exists whole or not at all, and finished tasks outlive a fault."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.engine.task_stage import Advance, StaleTask, TaskStage
from lit_pretrain.prepare.preparation import (
    DATASET,
    check_free,
    clear_partial_directory,
    partial_directory,
    workspace,
)


def finish_a_task(work: Path) -> None:
    (work / "01-clean").mkdir(exist_ok=True)
    (work / "01-clean" / "00000.json").write_text("{}")


def test_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "data"
    with workspace(out, "state") as work:
        finish_a_task(work)
        (work / DATASET / "a").mkdir(parents=True)
        (work / DATASET / "a" / "b").write_text("content")
        assert not out.exists()
        assert work.parent.parent == out.parent  # one file system: the last step is a rename
    assert (out / "a" / "b").read_text() == "content"
    assert [path.name for path in out.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, RuntimeError, UserError])
def test_a_failure_before_any_task_was_done_leaves_nothing(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def fail() -> None:
        with workspace(tmp_path / "data", "state") as work:
            (work / "a").write_text("half")
            raise failure("no")

    with pytest.raises(failure):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, UserError])
def test_finished_tasks_are_kept_for_the_same_work(
    tmp_path: Path, failure: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with workspace(tmp_path / "data", "state") as work:
            finish_a_task(work)
            raise failure("no")

    with pytest.raises(failure):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".data.partial"]
    with workspace(tmp_path / "data", "state") as work:
        assert (work / "01-clean" / "00000.json").exists()
        assert "going on with what an earlier run left" in capsys.readouterr().err
        (work / DATASET).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_other_work_left_is_removed(tmp_path: Path) -> None:
    stale = partial_directory(tmp_path / "data")
    (stale / "train").mkdir(parents=True)
    (stale / "train" / "chunk-0-0.bin").write_text("stale")
    (stale / "link").symlink_to(tmp_path)
    finish_a_task(stale)
    with workspace(tmp_path / "data", "state") as work:
        assert list(stale.iterdir()) == [work]
        assert [path.name for path in work.iterdir()] == ["state"]
        (work / DATASET).mkdir()
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_said(tmp_path: Path, code: int) -> None:
    def fail() -> None:
        with workspace(tmp_path / "data", "state") as work:
            (work / "a").write_text("half")
            raise OSError(code, os.strerror(code))

    with pytest.raises(UserError, match=f"{os.strerror(code)}. Free some space and run again"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_share_it(tmp_path: Path) -> None:
    with workspace(tmp_path / "data", "state") as work:
        (work / DATASET).mkdir()
        (work / "mine").write_text("kept")
        code = (
            "import sys, pathlib; from lit_pretrain.prepare.preparation import workspace\n"
            "with workspace(pathlib.Path(sys.argv[1]), 'state'): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert other.returncode == 1
        assert "another `prepare` is writing" in other.stderr
        assert (work / "mine").read_text() == "kept"


def test_an_empty_directory_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    check_free(out)
    with workspace(out, "state") as work:
        (work / DATASET).mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not a prepared dataset .*notes\.txt"):
        check_free(out)
    with pytest.raises(UserError, match="not a directory"):
        check_free(out / "notes.txt")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a directory"):
        check_free(tmp_path / "dangling")


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        workspace(tmp_path / "file" / "data", "state"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"), workspace(tmp_path / "data", "state"):
        pass


def test_a_late_task_of_other_work_cannot_get_in(tmp_path: Path) -> None:
    """A job array may outlive the run that submitted it: its tasks find neither their directory
    nor their state.
    """

    def task(number: int, advance: Advance) -> dict[str, Any]:
        return {"from": "the other config"}

    def stop() -> None:
        with workspace(tmp_path / "data", "one" * 10) as work:
            stages.append(
                TaskStage(
                    name="01-clean", title="", task=task, sizes=[1, 1], work=work, state="one" * 10
                )
            )
            stages[0].run(0, print)
            raise KeyboardInterrupt

    stages: list[TaskStage] = []
    with pytest.raises(KeyboardInterrupt):
        stop()
    with workspace(tmp_path / "data", "two" * 10) as work:
        with pytest.raises(StaleTask, match="does not belong to its preparation any more"):
            stages[0].run(1, print)
        mine = TaskStage(
            name="01-clean", title="", task=task, sizes=[1, 1], work=work, state="two" * 10
        )
        assert mine.open_tasks() == [0, 1]
        # Nor does a result that somebody put in its place count.
        mine.directory.mkdir()
        (mine.directory / "00001.json").write_text(
            json.dumps({"state": "one" * 10, "result": {"from": "the other config"}})
        )
        assert mine.open_tasks() == [0, 1]
        mine.run(1, print)
        assert mine.open_tasks() == [0]
        (work / DATASET).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_clear_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    root = partial_directory(tmp_path / "data")
    clear_partial_directory(tmp_path / "data")
    (root / "abc").mkdir(parents=True)
    finish_a_task(root / "abc")
    with workspace(tmp_path / "other", "state") as work:
        (work / DATASET).mkdir()
        clear_partial_directory(tmp_path / "other")
        assert work.exists(), "another run is at work there"
    clear_partial_directory(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
