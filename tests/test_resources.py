"""Resources that the system refuses: each verb says so in a line, before the work where it can."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.run_board import RunBoard
from lit_pretrain.errors import UserError, refusal_of_system
from lit_pretrain.files import LONGEST_NAME, check_output, write_file
from lit_pretrain.report.run_folder import MetricsFile

RUN = [
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
    "--model.compile=off", "--data.seq_len=32", "--data.micro_batch_size=8",
    "--data.global_batch_tokens=256", "--data.val_tokens=256", "--log_every=1",
    "--sample_prompts=[]", "--trainer.accelerator=cpu",
]  # fmt: skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; skips where nobody may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> None:
    """Write until the disk takes nothing more."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with pytest.raises(OSError, match="No space left"):  # noqa: PT012  (of any write)
                while True:
                    file.write(bytes(size))


@pytest.mark.parametrize(("first", "kept"), [(2, None), (21, 20)])
@pytest.mark.parametrize("what", ["metrics", "events"])
def test_a_disk_that_is_full_in_the_middle_of_a_run(
    what: str,
    first: int,
    kept: int | None,
    small_disk: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain = MetricsFile.write

    def write(self: MetricsFile, step: int, values: dict[str, float]) -> None:
        if step == first:
            fill(small_disk)
        if what == "metrics" or step < first:
            plain(self, step, values)

    monkeypatch.setattr(MetricsFile, "write", write)
    if what == "metrics":
        monkeypatch.setattr(RunBoard, "log_metrics", lambda *arguments, **options: None)
    code = main([
        "fit", *RUN, f"--data.path={dataset}", f"--runs={small_disk}", "--name=run",
        "--max_steps=200", f"--checkpoint_every={kept or 0}",
    ])  # fmt: skip
    shown = capfd.readouterr().err
    assert code == 2
    assert "Traceback" not in shown
    assert f"the run {small_disk / 'run'} stopped: No space left on device" in shown
    safe = "step=00000020.ckpt is safe, so go on with --resume auto" if kept else "no checkpoint"
    assert safe in shown


LONG = "n" * (LONGEST_NAME + 45)
OUTPUTS: dict[str, Callable[[str, Path], list[str]]] = {
    "validate --json": lambda out, run: ["validate", f"--run={run}", f"--json={out}"],
    "test --json": lambda out, run: ["test", f"--run={run}", f"--json={out}"],
    "evaluate --report": lambda out, run: ["evaluate", str(run), f"--report={out}"],
    "replay --report": lambda out, run: ["replay", str(run), "--step=1", f"--report={out}.json"],
    "export": lambda out, run: ["export", "--to=hf", str(run), out],
    "merge": lambda out, run: ["merge", str(run), out],
    "average": lambda out, run: ["average", str(run), out],
    "adapter export": lambda out, run: ["adapter", "export", str(run), out],
    "inspect data --figure": lambda out, run: [
        "inspect", "data", str(run.parents[1] / "data" / "embedded"), f"--figure={out}"
    ],
    "inspect data --tensorboard": lambda out, run: [
        "inspect", "data", str(run.parents[1] / "data" / "embedded"), f"--tensorboard={out}"
    ],
    "compare --figure": lambda out, run: ["compare", str(run), str(run), f"--figure={out}"],
    "compare --tensorboard": lambda out, run: [
        "compare", str(run), str(run), f"--tensorboard={out}"
    ],
    "sweep --out": lambda out, run: [
        "sweep", str(run / "config.yaml"), "--seeds=2", f"--out={out}"
    ],
    "plan --png": lambda out, run: ["plan", f"--config={run / 'config.yaml'}", f"--png={out}"],
    "scaling fit --out": lambda out, run: ["scaling", "fit", str(run), f"--out={out}"],
    "scaling fit --table": lambda out, run: ["scaling", "fit", str(run), f"--table={out}"],
    "fit --runs": lambda out, run: [
        "fit", *RUN, f"--data.path={run.parents[1] / 'data' / 'embedded'}", f"--runs={out}",
        "--name=x", "--max_steps=1",
    ],
    "prepare out": lambda out, run: [
        "prepare", f"--sources={{mine: {{kind: text, path: {run / 'summary.md'}}}}}", f"--out={out}"
    ],
}  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    output: str,
    quickstart: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = quickstart / "runs" / "quickstart"
    for place, reason in (
        ("/dev/null/x.png", "Not a directory"), (f"{LONG}.png", "File name too long")
    ):  # fmt: skip
        assert main(OUTPUTS[output](place, run)) == 2
        shown = capsys.readouterr()
        assert reason in shown.err
        assert place in shown.err
        assert "Traceback" not in shown.err
        assert "bits" not in shown.out
    assert list(tmp_path.iterdir()) == []


def test_evaluations_of_a_run_that_is_only_read(
    quickstart: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["cp", "-r", str(quickstart / "runs" / "quickstart"), small_disk], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["evaluate", str(small_disk / "quickstart")]) == 2
    shown = capsys.readouterr()
    assert "cannot be written: Read-only file system; name another with --report" in shown.err
    assert "bits" not in shown.out


def test_a_full_disk_is_found_before_the_work(small_disk: Path) -> None:
    check_output(small_disk / "a" / "b.json", "--json")
    fill(small_disk)
    with pytest.raises(UserError, match="--json cannot be written: No space left on device"):
        check_output(small_disk / "a" / "b.json", "--json")
    (small_disk / "filler").unlink()
    assert list(small_disk.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--json=x cannot be written: Is a directory; choose"):
        check_output(tmp_path, "--json=x")


def test_the_longest_name_that_a_file_may_have(tmp_path: Path) -> None:
    place = tmp_path / ("é" * (LONGEST_NAME // 2))
    check_output(place, "--out")
    write_file(place, "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files; allow more"),
        (MemoryError(), "there is not enough memory; "),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
                " memory: you tried to allocate 4 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "Cannot allocate memory; give the process more memory",
        ),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\n"
                "RuntimeError: unable to write to file </torch_1_2_0>: No space left on device (28)"
            ),
            "/dev/shm: No space left on device; enlarge /dev/shm, or set data.num_workers to 0",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that"
                " dataloader's workers are out of shared memory."
            ),
            "enlarge /dev/shm, or set data.num_workers to 0",
        ),
        (Exception("No space left on device (os error 28)"), "free some space there"),
    ],
)
def test_a_refusal_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> int:
        raise error

    monkeypatch.setattr("lit_pretrain.__main__.dispatch", refuse)
    assert main(["runs"]) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "x"), UserError("a mistake")]
)
def test_other_errors_are_no_refusals(error: Exception) -> None:
    assert refusal_of_system(error) is None


@pytest.mark.slow
def test_loader_processes_that_have_no_shared_memory(dataset: Path, tmp_path: Path) -> None:
    """torch meets the full disk, and Lightning fails while it tidies up."""
    may = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("a /dev/shm of its own cannot be mounted")
    fit = [sys.executable, "-m", "lit_pretrain", "fit", f"--data.path={dataset}", "--name=small",
           f"--runs={tmp_path}", "--max_steps=2", "--data.num_workers=2", *RUN]  # fmt: skip
    mounted = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, "sh", *fit], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "/dev/shm: No space left on device; enlarge /dev/shm, or set" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_line_where_memory_lacks_to_the_end() -> None:
    """Exit callbacks of libraries fail as the work did; other errors of theirs are shown."""
    shown = (
        "import sys, atexit, lit_pretrain.__main__ as m\n"
        "def no_memory(): raise MemoryError\n"
        "def broken(): raise ValueError('a bug')\n"
        "class Half:\n"
        "    def __del__(self): self.rest\n"
        "atexit.register(no_memory); atexit.register(broken); atexit.register(Half)\n"
        "m.dispatch = lambda *_: no_memory()\n"
        "sys.exit(m.main(['runs']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is not enough memory; ")
    assert "MemoryError" not in done.stderr
    assert "AttributeError" not in done.stderr
    assert "ValueError: a bug" in done.stderr


def test_the_name_of_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    long = "n" * 201
    assert main(["prepare", f"--sources={{{long}: {{kind: text, path: x}}}}", "--out=y"]) == 2
    assert "has 201 characters; 200 are allowed" in capsys.readouterr().err
