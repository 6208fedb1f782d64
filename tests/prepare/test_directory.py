"""A dataset's directory exists whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.directory import check_free, partial, whole


def test_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "data"
    with whole(out) as work:
        (work / "a").mkdir()
        (work / "a" / "b").write_text("content")
        assert not out.exists()
        assert work.parent == out.parent  # one file system: the last step is a rename
    assert (out / "a" / "b").read_text() == "content"
    assert [path.name for path in out.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, RuntimeError, UserError])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail() -> None:
        with whole(tmp_path / "data") as work:
            (work / "a").write_text("half")
            raise failure("no")

    with pytest.raises(failure):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, code: int) -> None:
    def fail() -> None:
        with whole(tmp_path / "data") as work:
            (work / "a").write_text("half")
            raise OSError(code, os.strerror(code))

    with pytest.raises(UserError, match=f"{os.strerror(code)}. Nothing was kept"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    stale = partial(tmp_path / "data")
    (stale / "train").mkdir(parents=True)
    (stale / "train" / "chunk-0-0.bin").write_text("stale")
    (stale / "link").symlink_to(tmp_path)
    with whole(tmp_path / "data") as work:
        assert list(work.iterdir()) == []
    assert list((tmp_path / "data").iterdir()) == []


def test_two_runs_do_not_share_it(tmp_path: Path) -> None:
    with whole(tmp_path / "data") as work:
        (work / "mine").write_text("kept")
        code = "import sys, pathlib; from lit_pretrain.prepare.directory import whole\nwith whole(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "another `prepare` is writing" in other.stderr
        assert (work / "mine").read_text() == "kept"


def test_an_empty_directory_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    check_free(out)
    with whole(out):
        pass
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
    with pytest.raises(UserError, match="cannot be written"), whole(tmp_path / "file" / "data"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"), whole(tmp_path / "data"):
        pass
