"""Remote runs: what is uploaded comes back, and what interrupts an upload leaves the older
checkpoints. file:// stands for all stores here; S3 is in tests/test_remote_home.py.
"""

import shutil
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.checkpoint.digests import damage, file_digest, write_digests
from lit_pretrain.checkpoint.layout import checkpoint_name, checkpoints, step_of
from lit_pretrain.checkpoint.remote_run import RemoteRun, check_home, fetched, write_home
from lit_pretrain.checkpoint.shards import write_shards
from lit_pretrain.checkpoint.weights import write_checkpoint
from lit_pretrain.errors import UserError
from lit_pretrain.files import remove_path
from lit_pretrain.report.rewinds import Rewind, write_rewinds
from lit_pretrain.report.run_folder import (
    CONFIG,
    METRICS,
    MetricsFile,
    complete_metrics,
    read_metrics,
)


def save(run: Path, step: int, value: float | None = None) -> Path:
    path = run / "checkpoints" / checkpoint_name(step)
    write_checkpoint({"state_dict": {"net.w": torch.full((4,), value or float(step))}}, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two checkpoints."""
    folder = tmp_path / "local" / "x"
    save(folder, 4)
    save(folder, 8)
    (folder / CONFIG).write_text("max_steps: 8\n")
    (folder / ".lock").write_text("process 1")
    metrics = MetricsFile(folder / METRICS, first_step=0)
    for step in range(1, 9):
        metrics.write(step, {"train/loss": 1.0 / step})
    return folder


@pytest.fixture
def remote(tmp_path: Path) -> RemoteRun:
    return RemoteRun(f"file://{tmp_path}/store/x")


def steps(folder: Path) -> list[int]:
    return [step_of(path) or 0 for path in checkpoints(folder) if damage(path) is None]


def pulled(remote: RemoteRun, folder: Path) -> list[int]:
    """The sound checkpoints that an empty machine gets."""
    shutil.rmtree(folder, ignore_errors=True)
    remote.pull(folder)
    return steps(folder)


def test_what_is_uploaded_comes_back(run: Path, remote: RemoteRun, tmp_path: Path) -> None:
    remote.push(run)
    assert remote.holds_run()
    assert pulled(remote, tmp_path / "b") == [4, 8]
    assert read_metrics(tmp_path / "b") == read_metrics(run)
    assert (tmp_path / "b" / CONFIG).read_bytes() == (run / CONFIG).read_bytes()
    assert not (tmp_path / "b" / ".lock").exists()
    check_home(tmp_path / "b", remote)  # as after a kill, or by another rank
    for path in checkpoints(run):
        assert (tmp_path / "b" / "checkpoints" / path.name).read_bytes() == path.read_bytes()


def test_a_sharded_checkpoint_comes_back(run: Path, remote: RemoteRun, tmp_path: Path) -> None:
    folder = run / "checkpoints" / checkpoint_name(12)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        write_shards({"state_dict": {"net.w": torch.ones(3)}, "epoch": 0}, folder)
    finally:
        torch.distributed.destroy_process_group()
    remote.push(run)
    assert pulled(remote, tmp_path / "b") == [4, 8]  # it has no digests yet
    write_digests(folder, {path.name: file_digest(path) for path in folder.iterdir()})
    remote.push(run)
    assert pulled(remote, tmp_path / "b") == [4, 8, 12]
    (tmp_path / "store" / "x" / "checkpoints" / folder.name / "meta.pt").unlink()
    assert pulled(remote, tmp_path / "c") == [4, 8]
    save(tmp_path / "c", 12)  # by one process, whose checkpoints are files
    remote.push(tmp_path / "c")
    assert pulled(remote, tmp_path / "b") == [4, 8, 12]


def test_wherever_an_upload_is_interrupted_the_older_checkpoints_are_found(
    run: Path, remote: RemoteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An object of another checkpoint with the same name is not mixed with the new one either."""
    remote.push(run)
    store = Path(shutil.copytree(tmp_path / "store" / "x", tmp_path / "before"))
    save(run, 12)
    save(run, 8, 80.0)
    plain, left = RemoteRun._put, [0]

    def put(self: RemoteRun, content: Any, name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            if isinstance(content, Path):  # half of it arrives
                place = tmp_path / "store" / "x" / name
                place.write_bytes(content.read_bytes()[: content.stat().st_size // 2])
            raise OSError("connection reset")
        plain(self, content, name)

    def interrupted(puts: int) -> bool:
        left[0] = puts
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RemoteRun, "_put", put)
            try:
                RemoteRun(remote.address).push(run)
            except UserError:
                return True
        return False

    puts = 0
    while interrupted(puts):
        found = pulled(remote, tmp_path / "b")
        assert found in ([4, 8], [4, 8, 12], [4, 12])
        if found == [4, 8]:
            kept = tmp_path / "b" / "checkpoints" / checkpoint_name(8)
            assert kept.read_bytes() == (store / "checkpoints" / kept.name).read_bytes()
        remote.push(run)
        assert pulled(remote, tmp_path / "b") == [4, 8, 12]
        puts += 1
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(store, tmp_path / "store" / "x")
    assert puts >= 6
    assert "is not whole (interrupted upload); it is passed over" in capsys.readouterr().err


def test_a_checkpoint_that_is_deleted_goes_there_too(
    run: Path, remote: RemoteRun, tmp_path: Path
) -> None:
    remote.push(run)
    checkpoints(run)[0].unlink()
    save(run, 12)
    remote.push(run)
    assert pulled(remote, tmp_path / "b") == [8, 12]
    remote.drop_newer(8)
    assert pulled(remote, tmp_path / "b") == [8]
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    remote.push(run)  # a local disk that was lost takes nothing with it
    assert pulled(remote, tmp_path / "b") == [8]


@pytest.mark.parametrize("place", [0, 300, -5])
def test_a_damaged_object_is_passed_over(
    run: Path, remote: RemoteRun, tmp_path: Path, place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.push(run)
    file = tmp_path / "store" / "x" / "checkpoints" / checkpoint_name(8)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert pulled(remote, tmp_path / "b") == [4]
    assert "step=00000008.ckpt is damaged" in capsys.readouterr().err
    save(tmp_path / "b", 8, 81.0)
    remote.push(tmp_path / "b")
    assert pulled(remote, tmp_path / "c") == [4, 8]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "is damaged"),
        ('{"files": {"../../x": 1}, "identity": "a"}', "not the plain name"),
        ('{"files": {"step=00000004.ckpt": 1}, "identity": "a"}', "of another checkpoint"),
    ],
)
def test_a_damaged_mark_is_none(
    run: Path,
    remote: RemoteRun,
    tmp_path: Path,
    content: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    remote.push(run)
    name = f"{checkpoint_name(8)}.complete"
    (tmp_path / "store" / "x" / "checkpoints" / name).write_text(content)
    assert pulled(remote, tmp_path / "b") == [4]
    assert said in capsys.readouterr().err


def test_only_a_copy_that_is_behind_is_renewed(
    run: Path, remote: RemoteRun, tmp_path: Path
) -> None:
    remote.push(run)
    (run / CONFIG).write_text("changed: here\n")
    remote.pull(run)
    assert (run / CONFIG).read_text() == "changed: here\n"
    checkpoints(run)[-1].unlink()
    write_rewinds(run, [Rewind(4, "5:6")])
    remote.pull(run)  # it is about to go back
    assert steps(run) == [4]
    write_rewinds(run, [Rewind(4, "5:6", done=True)])
    remote.pull(run)
    assert steps(run) == [4, 8]


def test_a_folder_is_the_copy_of_one_home(run: Path, remote: RemoteRun, tmp_path: Path) -> None:
    check_home(run, remote)  # a run that had no home so far may get one
    write_home(run, remote)
    check_home(run, remote)
    with pytest.raises(UserError, match=r"is the copy of file:.*not the copy of file:.*/other"):
        check_home(run, RemoteRun(f"file://{tmp_path}/store/other"))
    remote.push(run)
    (run / ".home").unlink()
    with pytest.raises(UserError, match="is a run of its own"):
        check_home(run, remote)


def test_metrics_are_uploaded_as_far_as_they_agree(run: Path) -> None:
    whole = complete_metrics(run)
    with (run / METRICS).open("a") as file:
        file.write('{"step": 9}\n{"step": 10, "tra')
    assert complete_metrics(run) == whole
    assert whole[METRICS].count(b"\n") == 8


@pytest.mark.parametrize(("call", "file"), [("pipe_file", METRICS), ("put_file", CONFIG)])
def test_a_file_that_is_written_anew_stays_whole(
    run: Path,
    remote: RemoteRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    file: str,
) -> None:
    """A kill in the middle of an upload leaves the file of the upload before."""
    remote.push(run)
    store = tmp_path / "store" / "x"
    before = (store / file).read_bytes()
    MetricsFile(run / METRICS, first_step=8).write(9, {"train/loss": 0.1})
    (run / CONFIG).write_text("max_steps: 9\n")

    def half(*given: Any) -> None:
        place, content = given if call == "pipe_file" else (given[1], Path(given[0]).read_bytes())
        Path(place).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote._store, call, half)
        with pytest.raises(KeyboardInterrupt):
            remote.push(run)
    assert (store / file).read_bytes() == before
    assert pulled(remote, tmp_path / "again") == [4, 8]
    assert not list((tmp_path / "again").rglob("*.part"))
    remote.push(run)
    assert (store / file).read_bytes() == (run / file).read_bytes() != before
    assert not list(store.rglob("*.part"))


def test_one_checkpoint_is_read_from_there(
    run: Path, remote: RemoteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    remote.push(run)
    assert step_of(fetched(remote.address, which="last")) == 8
    old = f"{remote.address}/checkpoints/{checkpoint_name(4)}"
    assert step_of(fetched(old, which="last")) == 4
    with pytest.raises(UserError, match=r"holds no whole checkpoint step=00000006.ckpt; it has"):
        fetched(old.replace("04.", "06."), which="last")
    with pytest.raises(UserError, match="holds no run"):
        fetched(f"file://{tmp_path}/store/other", which="last")


def test_what_its_home_has_deleted_is_no_checkpoint_of_a_run_that_is_read(
    run: Path, remote: RemoteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those from which it has gone back: `average` would take them for its newest."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    remote.push(run)
    assert steps(fetched(remote.address, which="all")) == [4, 8]
    remote.drop_newer(4)
    assert steps(fetched(remote.address, which="all")) == [4]


def test_ranks_of_a_machine_fetch_one_after_the_other(
    run: Path, remote: RemoteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    remote.push(run)
    plain, begun, may_end = RemoteRun.fetch_files, [], threading.Event()
    first_begins = threading.Event()

    def fetch_files(self: RemoteRun, folder: Path) -> None:
        begun.append(folder)
        first_begins.set()
        assert may_end.wait(60)
        plain(self, folder)

    monkeypatch.setattr(RemoteRun, "fetch_files", fetch_files)
    with futures.ThreadPoolExecutor(2) as ranks:
        first = ranks.submit(fetched, remote.address, which="last")
        assert first_begins.wait(60)
        second = ranks.submit(fetched, remote.address, which="last")
        with pytest.raises(futures.TimeoutError):
            second.result(0.3)
        assert len(begun) == 1
        may_end.set()
        assert first.result() == second.result()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_that_is_deleted_before_its_upload_is_passed_over(
    run: Path, remote: RemoteRun, tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run deletes old ones while a thread uploads."""
    old, delete = checkpoints(run)[0], RemoteRun._delete
    if sharded:
        old.unlink()
        old.mkdir()
        (old / "meta.pt").write_bytes(b"its parts")
        write_digests(old, {"meta.pt": file_digest(old / "meta.pt")})

    def delete_here_first(self: RemoteRun, which: Any) -> None:
        if which(old.name):
            remove_path(old)
        delete(self, which)

    monkeypatch.setattr(RemoteRun, "_delete", delete_here_first)
    remote.push(run)
    assert not old.exists()
    assert pulled(remote, tmp_path / "b") == [8]


def test_a_password_in_an_address_is_not_repeated(run: Path) -> None:
    remote = RemoteRun("memory://somebody:password@host/x")
    with (
        pytest.raises(UserError, match=r"memory://<hidden>@host/x cannot be read") as caught,
        remote._reaching("read"),
    ):
        raise OSError("sftp://somebody:password@host/x is down")
    assert "password" not in str(caught.value)
    write_home(run, remote)
    assert "password" not in (run / ".home").read_text()
    check_home(run, remote)


@pytest.mark.parametrize(
    ("address", "said"),
    [("nonsense://a/b", "nonsense"), ("gs://bucket/x", "gcsfs"), ("file:///proc/none/x", "proc")],
)
def test_an_address_that_cannot_be_written_is_refused_in_a_line(
    run: Path, address: str, said: str
) -> None:
    def write() -> None:
        RemoteRun(address).push_files(run)

    with pytest.raises(UserError, match=f"{address} cannot be (opened|written): .*{said}"):
        write()
