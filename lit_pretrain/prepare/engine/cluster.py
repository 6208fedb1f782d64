"""Cluster engines: the same tasks through datatrove's executors for Ray and Slurm (extra `cluster`)."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.engine.config import EngineConfig
from lit_pretrain.prepare.engine.stage import Advance, Stage

_POLL_SECONDS = 0.5


class ClusterTask:
    """A task as datatrove's executors call it: once per rank."""

    def __init__(self, stage: Stage, numbers: list[int]) -> None:
        self._stage = stage
        self._numbers = numbers

    def __call__(self, data: object, rank: int, world_size: int) -> tuple[()]:
        """Does the task of a rank."""
        self._stage.run(self._numbers[rank], lambda size: None)
        return ()


def run(stage: Stage, workers: int, advance: Advance, config: EngineConfig) -> None:
    """Does the open tasks of a stage on a cluster; see `local.run`.

    Progress comes with whole tasks. Completion is judged by the results alone.

    Raises:
        UserError: datatrove, Ray or Slurm is missing or refuses.
    """
    numbers = stage.open_tasks()
    if not numbers:
        return
    try:
        import datatrove  # noqa: F401
    except ImportError:
        raise UserError(f"engine {config.engine} needs datatrove: pip install 'lit_pretrain[cluster]'") from None
    # datatrove remembers finished tasks by rank and directory: another set of open tasks is another directory.
    logs = stage.directory / "logs" / f"{int(time.time() * 1000)}"
    logs.mkdir(parents=True)
    with _reporting(stage, numbers, advance):
        if config.engine == "ray":
            _ray(ClusterTask(stage, numbers), len(numbers), workers, str(logs), config)
        else:
            _slurm(ClusterTask(stage, numbers), len(numbers), workers, str(logs), config, stage)


def _ray(task: ClusterTask, tasks: int, workers: int, logs: str, config: EngineConfig) -> None:
    """On the Ray cluster at `ray.address`, or on one of this machine's processes if none runs."""
    try:
        import ray
    except ImportError:
        raise UserError("engine ray needs ray: pip install 'lit_pretrain[cluster]'") from None
    from datatrove.executor import RayPipelineExecutor

    with _quiet():
        if not ray.is_initialized():
            try:
                ray.init(address=config.ray.address, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError as error:
                raise UserError(f"no Ray cluster at {config.ray.address!r}: {error}. Start one with `ray start --head`.") from None
        RayPipelineExecutor(
            pipeline=[task],
            tasks=tasks,
            workers=workers,
            logging_dir=logs,
            cpus_per_task=1,
            mem_per_cpu_gb=config.ray.memory_gb,
            log_first=False,
        ).run()


def _slurm(task: ClusterTask, tasks: int, workers: int, logs: str, config: EngineConfig, stage: Stage) -> None:
    """As one job array; returns when it has left the queue."""
    from datatrove.executor import SlurmPipelineExecutor

    class Executor(SlurmPipelineExecutor):  # type: ignore[misc]
        """Without the job that merges statistics: it waits in the queue for ever when a task fails."""

        def launch_merge_stats(self) -> None:
            """Launches nothing."""

    slurm = config.slurm
    if slurm.partition is None:
        raise UserError("engine slurm needs slurm.partition (see `sinfo`)")
    name = f"lit_pretrain-{stage.name}-{Path(logs).name}"
    executor = Executor(
        pipeline=[task],
        tasks=tasks,
        workers=workers,
        time=slurm.time,
        partition=slurm.partition,
        cpus_per_task=1,
        mem_per_cpu_gb=slurm.memory_gb,
        job_name=name,
        logging_dir=logs,
        sbatch_args=dict(slurm.sbatch),
        env_command=slurm.environment or f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        qos=slurm.qos,
        mail_type="NONE",
    )
    try:
        with _quiet():
            executor.run()
    except FileNotFoundError as error:
        raise UserError(f"engine slurm needs `sbatch` on this machine: {error}") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused the job array of {stage.name}: {error}; its script is in {logs}") from None
    while stage.open_tasks() and _queued(name):
        time.sleep(_POLL_SECONDS)


def _queued(name: str) -> bool:
    """Whether a job of this name waits or runs; there may be several, for an array has a largest size."""
    found = subprocess.run(["squeue", "--noheader", "--name", name], capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())


@contextlib.contextmanager
def _reporting(stage: Stage, numbers: list[int], advance: Advance) -> Iterator[None]:
    """Advances by the size of each task whose result appears."""
    left, stop = set(numbers), threading.Event()

    def look() -> None:
        now = left & set(stage.open_tasks())
        advance(sum(stage.sizes[number] for number in left - now))
        left.intersection_update(now)

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keeps datatrove's and Ray's own reports off the terminal; each task's log is in the stage's directory."""
    from datatrove.utils.logging import logger

    sink = io.StringIO()
    logger.remove()
    with contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
        yield sink
