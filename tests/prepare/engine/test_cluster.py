"""Every engine gives the bytes that one process gives, goes on after a fault, and says which
task failed.
"""

import importlib.util
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.files import file_sha256
from lit_pretrain.prepare.engine.cluster import group_tasks

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]
ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
SLURM = ["--engine=slurm", "--workers=2", "--slurm.partition=main", "--slurm.memory_gb=1"]


def tree(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): file_sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 5), st.integers(1, 60))
def test_groups_hold_every_task_once(sizes: list[int], workers: int, limit: int) -> None:
    groups = group_tasks(sizes, workers, limit=limit)
    assert [position for found in groups for position in found] == list(range(len(sizes)))
    assert all(found for found in groups)
    assert all(
        len(found) == 1 or sum(sizes[position] for position in found) <= limit for found in groups
    )
    assert len(groups) >= min(len(sizes), workers), "all workers have something to do"


def test_every_step_had_something_to_do(local: Path) -> None:
    """Else the equality of engines would say little."""
    texts, table = (Manifest.load(local).sources[name].funnel for name in ("texts", "table"))
    steps = {step.name: step for step in texts}
    assert list(steps) == [
        "read",
        "fault",
        "GopherQuality",
        "decontaminate",
        "pii",
        "dedup",
        "lines",
        "store",
    ]
    assert steps["GopherQuality"].removed == {"too_few_words": 1}
    assert steps["decontaminate"].removed == {"exam": 1}
    assert steps["pii"].changed == {"with email": 31}
    assert steps["dedup"].removed == {"exact": 1}
    assert steps["lines"].changed
    ids = next(step for step in table if step.name == "ids")
    assert (ids.removed, ids.documents) == ({"duplicate_id": 10}, 30)
    splits = Manifest.load(local).sources["table"].splits.values()
    for what in ("bytes", "tokens"):
        assert getattr(table[-1], what) == sum(getattr(split, what) for split in splits)
    # A document whose end is held out is stored in two or three pieces.
    cut = table[-1].changed.get("end_held_out", 0)
    pieces = sum(split.documents for split in splits) - table[-1].documents
    assert cut <= pieces <= 2 * cut


def test_two_processes(prepare: Prepare, corpus: Path, local: Path, tmp_path: Path) -> None:
    assert prepare(corpus, tmp_path / "data", "--workers=2").returncode == 0
    assert tree(tmp_path / "data") == tree(local)


@ray
@pytest.mark.slow
def test_ray_with_a_worker_that_is_killed(
    prepare: Prepare, corpus: Path, local: Path, tmp_path: Path
) -> None:
    """The process of a task goes, as for lack of memory: the task is done again, and the result
    is the same.
    """
    done = prepare(
        corpus,
        tmp_path / "data",
        "--engine=ray",
        "--workers=2",
        ENGINE_FAULT=f"kill:{tmp_path / 'killed'}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert tree(tmp_path / "data") == tree(local)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "killed"]
    assert all(line.startswith("prepare: ") for line in done.stderr.splitlines()), (
        done.stderr
    )  # nothing of Ray's or datatrove's own


@ray
def test_a_task_that_fails_on_ray_is_an_error(
    prepare: Prepare, corpus: Path, local: Path, tmp_path: Path
) -> None:
    """Ray's executor itself ends with 0 in this case. What is done stays done, whichever engine
    goes on.
    """
    done = prepare(corpus, tmp_path / "data", "--engine=ray", "--workers=2", ENGINE_FAULT="raise")
    assert done.returncode != 0
    assert "of 01-clean failed" in done.stderr
    assert "KeyError: 'no such word'" in done.stderr
    assert not (tmp_path / "data").exists()
    results = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob(".data.partial/*/01-clean/*.json")
    }
    parts = len(list(tmp_path.glob(".data.partial/*/clean/*.parquet"))) + len(
        list(tmp_path.glob(".data.partial/*/ids/*.parquet"))
    )
    assert len(results) == parts >= 3
    again = prepare(corpus, tmp_path / "data", "--workers=2")
    assert again.returncode == 0, again.stderr
    assert (
        f"read and clean: {len(results)} of {len(results) + 1} tasks were done before"
        in again.stderr
    )
    assert tree(tmp_path / "data") == tree(local)


@pytest.mark.slow
def test_slurm(
    prepare: Prepare, corpus: Path, local: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    done = prepare(corpus, tmp_path / "data", *SLURM, **slurm)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(local)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_a_run_on_slurm(
    prepare: Prepare,
    start: Start,
    corpus: Path,
    local: Path,
    tmp_path: Path,
    slurm: dict[str, str],
    kind: signal.Signals,
) -> None:
    """Stopped by a signal it cancels its jobs and waits for their end; after a kill the next
    run does.
    """
    process = start(
        corpus, tmp_path / "data", *SLURM, ENGINE_FAULT=f"sleep:{tmp_path / 'asleep'}", **slurm
    )
    begin = time.monotonic()
    while not (tmp_path / "asleep").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begin < 200
        time.sleep(0.05)
    process.send_signal(kind)
    process.communicate(timeout=150)
    assert process.returncode == (-kind if kind == signal.SIGKILL else 128 + kind)
    assert bool(queue(slurm)) == (kind == signal.SIGKILL)
    again = prepare(corpus, tmp_path / "data", "--workers=1", **slurm)
    assert again.returncode == 0, again.stderr
    assert not queue(slurm)
    assert tree(tmp_path / "data") == tree(local)


def queue(slurm: dict[str, str]) -> str:
    return subprocess.run(
        ["squeue", "--noheader"], capture_output=True, text=True, check=True, env=slurm
    ).stdout


@pytest.mark.slow
def test_a_job_that_cannot_run_is_an_error(
    prepare: Prepare, corpus: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    done = prepare(corpus, tmp_path / "data", *SLURM, "--slurm.environment=exit 3", **slurm)
    assert done.returncode == 2
    assert "tasks of 01-clean did not end (the first: 0)" in done.stderr
    assert not (tmp_path / "data").exists()


def test_slurm_needs_a_partition_and_sbatch(
    prepare_here: Prepare, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--config",
        corpus / "config.yaml",
        f"--out={tmp_path / 'data'}",
        "--filters=[]",
        "--engine=slurm",
    ]
    done = prepare_here(*options)
    assert (done.returncode, "slurm.partition" in done.stderr) == (2, True)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = prepare_here(*options, "--slurm.partition=main")
    assert (done.returncode, "needs `sbatch` on this machine" in done.stderr) == (
        2,
        True,
    ), done.stderr


PRETENDED = {
    # Notes what it gets, and runs the tasks of the array one after the other in the background, as
    # one job.
    "sbatch": (
        """#!/bin/bash
script="${@: -1}"
cp "$script" "$FAKE/script.$(ls "$FAKE" | wc -l)"
printf '%s\\n' "$*" >>"$FAKE/sbatch.log"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
body="$FAKE/body.$$"
cp "$script" "$body"
export SLURM_NODELIST=here
set -m  # a process group of its own, so that scancel reaches all of the job
( for n in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$n bash "$body" >>"$FAKE/jobs.log" 2>&1
  done; rm "$FAKE/running" ) \\
  >/dev/null 2>&1 </dev/null &
echo $! >"$FAKE/running"
echo "Submitted batch job 4711"
"""
    ),
    "srun": (
        """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""
    ),
    "squeue": (
        """#!/bin/bash
printf '%s\\n' "$*" >>"$FAKE/squeue.log"
[ ! -e "$FAKE/running" ] || echo 4711
"""
    ),
    "scancel": (
        """#!/bin/bash
printf '%s\\n' "$*" >>"$FAKE/scancel.log"
kill -- "-$(cat "$FAKE/running")"; rm -f "$FAKE/running"
"""
    ),
    "scontrol": (
        """#!/bin/bash
echo here
"""
    ),
}
"""Programs that stand in for Slurm's, so that what is sent to it is tested where there is none."""


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """PATH with them, and where they note what they got."""
    fake = tmp_path / "fake"
    (fake / "bin").mkdir(parents=True)
    for name, text in PRETENDED.items():
        (fake / "bin" / name).write_text(text)
        (fake / "bin" / name).chmod(0o755)
    return {"PATH": f"{fake / 'bin'}:/usr/bin:/bin", "FAKE": str(fake)}


def test_what_is_sent_to_slurm(
    prepare: Prepare, prepare_here: Prepare, corpus: Path, tmp_path: Path, pretended: dict[str, str]
) -> None:
    """Of three stages: the equality with all of them is that of a real Slurm."""
    fake = Path(pretended["FAKE"])
    few = [
        "--filters=[]",
        "--dedup=null",
        "--decontaminate=null",
        "--sources.table.fields={}",
        "--part_bytes=150000",
    ]
    done = prepare(
        corpus,
        tmp_path / "data",
        *SLURM,
        "--slurm.qos=low",
        '--slurm.sbatch={"account": "mine"}',
        *few,
        **pretended,
    )
    assert done.returncode == 0, done.stderr
    here = prepare_here(
        "--config", corpus / "config.yaml", f"--out={tmp_path / 'here'}", "--workers=1", *few
    )
    assert here.returncode == 0, here.stderr
    assert tree(tmp_path / "data") == tree(tmp_path / "here")
    script = next(
        path for path in sorted(fake.glob("script.*")) if "01-clean" in path.read_text()
    ).read_text()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script.splitlines()
        if line.startswith("#SBATCH")
    )
    asked = {
        "partition": "main",
        "mem-per-cpu": "1G",
        "cpus-per-task": "1",
        "time": "04:00:00",
        "qos": "low",
        "account": "mine",
    }
    assert {name: options[name] for name in asked} == asked
    assert options["array"].endswith("%2")  # no more than --workers at a time
    assert options["job-name"].startswith("lit_pretrain-")
    assert "launch_pickled_pipeline" in script
    assert all(
        "--name lit_pretrain-" in line for line in (fake / "squeue.log").read_text().splitlines()
    )
    assert not (fake / "scancel.log").exists(), (
        "nothing is left to cancel after a stage that ended well"
    )


def test_a_run_that_is_stopped_cancels_its_jobs(
    start: Start, corpus: Path, tmp_path: Path, pretended: dict[str, str]
) -> None:
    process = start(
        corpus, tmp_path / "data", *SLURM, ENGINE_FAULT=f"sleep:{tmp_path / 'asleep'}", **pretended
    )
    begin = time.monotonic()
    while not (tmp_path / "asleep").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begin < 200
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    (jobs,) = tmp_path.glob(".data.partial/*/01-clean/logs/*/jobs")
    name, number = jobs.read_text().split()
    assert number == "4711"
    assert (Path(pretended["FAKE"]) / "scancel.log").read_text().splitlines() == [
        f"--name {name} 4711"
    ]
