"""Ray and Slurm give the bytes that one process gives, and say which task failed."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_pretrain.data.manifest import file_sha256

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]
ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


def tree(directory: Path) -> dict[str, str]:
    return {path.relative_to(directory).as_posix(): file_sha256(path) for path in sorted(directory.rglob("*")) if path.is_file()}


@ray
def test_ray(prepare: Prepare, texts: Path, local: Path, tmp_path: Path) -> None:
    done = prepare(texts, tmp_path / "data", "--engine=ray", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(local)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert all(line.startswith("prepare: ") for line in done.stderr.splitlines()), done.stderr  # nothing of Ray's or datatrove's own


@ray
def test_a_task_that_fails_on_ray_is_an_error(prepare: Prepare, texts: Path, tmp_path: Path) -> None:
    """Ray's executor itself ends with 0 in this case."""
    (tmp_path / "texts").symlink_to(texts)
    done = prepare(tmp_path / "texts", tmp_path / "data", "--engine=ray", "--workers=2", "--max_document_bytes=5500")
    assert done.returncode == 2
    assert "is larger than max_document_bytes=5,500" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_slurm(prepare: Prepare, texts: Path, local: Path, tmp_path: Path, slurm: dict[str, str]) -> None:
    done = prepare(texts, tmp_path / "data", "--engine=slurm", "--workers=2", "--slurm.partition=main", "--slurm.memory_gb=1", **slurm)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(local)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_job_that_cannot_run_is_an_error(prepare: Prepare, texts: Path, tmp_path: Path, slurm: dict[str, str]) -> None:
    options = ["--engine=slurm", "--workers=2", "--slurm.partition=main", "--slurm.memory_gb=1", "--slurm.environment=exit 3"]
    done = prepare(texts, tmp_path / "data", *options, **slurm)
    assert done.returncode == 2
    assert "5 of 5 tasks of 01-clean did not end (the first: 0)" in done.stderr
    assert not (tmp_path / "data").exists()


def test_slurm_needs_a_partition_and_sbatch(prepare: Prepare, texts: Path, tmp_path: Path) -> None:
    done = prepare(texts, tmp_path / "data", "--engine=slurm")
    assert (done.returncode, "slurm.partition" in done.stderr) == (2, True)
    done = prepare(texts, tmp_path / "data", "--engine=slurm", "--slurm.partition=main", PATH=str(tmp_path))
    assert (done.returncode, "needs `sbatch` on this machine" in done.stderr) == (2, True), done.stderr
