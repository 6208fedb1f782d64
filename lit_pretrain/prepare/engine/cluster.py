"""Cluster engines: run the same tasks by datatrove's executors for Ray and Slurm.

They need the extra `cluster`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.engine.task_stage import Advance, EngineConfig, TaskStage
from lit_pretrain.prepare.versions import version_difference
from lit_pretrain.slurm_script import slurm_directives

_POLL_SECONDS = 0.5
_GROUP_BYTES = 32 << 20
"""Small tasks share a process on the cluster, whose start takes seconds, up to this size: about
half a minute of cleaning.
"""
_GROUPS_PER_WORKER = 4
"""At least so many groups per worker if there is enough work: the last ones decide how long all of
it takes.
"""
_GRACE_SECONDS = 10.0
"""How long a job whose tasks are all done may take to leave the queue."""
_JOBS = "jobs"
"""File in the logs of a stage with the name and the numbers of its job arrays."""
_PATIENCE_SECONDS = 600.0
"""How long `squeue` may fail before the run gives up."""
_END_SECONDS = 90.0
"""How long cancelled jobs may take to end: Slurm's KillWait is 30 s."""


def group_tasks(
    sizes: Sequence[int], workers: int, *, limit: int = _GROUP_BYTES
) -> list[list[int]]:
    """Group consecutive tasks of at most `limit` together, in no fewer groups than workers.

    The tasks of a group share a process.

    Args:
        sizes: Work per task.
        workers: Processes at a time.
        limit: Most work in a process that does more than one task.

    Returns:
        Positions in `sizes`, each once.
    """
    wanted = min(len(sizes), max(workers, min(_GROUPS_PER_WORKER * workers, sum(sizes) // limit)))
    groups: list[list[int]] = []
    for number in range(wanted):
        left = 0  # of the limit
        for position in range(number * len(sizes) // wanted, (number + 1) * len(sizes) // wanted):
            if not left or sizes[position] > left:
                groups.append([])
                left = limit
            groups[-1].append(position)
            left = max(0, left - sizes[position])
    return groups


class ClusterTask:
    """Present the tasks of a stage as datatrove's executors call them: a group per rank."""

    def __init__(
        self, stage: TaskStage[Any], groups: list[list[int]], versions: dict[str, str]
    ) -> None:
        self._stage = stage
        self._groups = groups
        self._versions = versions

    def __call__(self, data: object, rank: int, world_size: int) -> tuple[()]:
        """Do the tasks of a rank that are not done: an earlier process may have died among them."""
        if what := version_difference(self._versions):
            raise RuntimeError(
                f"this machine would make other bytes than the one that started the run: {what}"
            )
        failure: Exception | None = None
        for number in self._groups[rank]:
            if not self._stage.done(number):
                try:
                    self._stage.run(number, lambda size: None)
                # `run` has written the failure, and the other tasks of the group can still be done.
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return ()


def run_on_cluster(
    stage: TaskStage[Any], advance: Advance, config: EngineConfig, versions: dict[str, str]
) -> None:
    """Do the open tasks of a stage on a cluster, as `run_locally` does them here.

    Progress comes with whole tasks. The results alone say which tasks are done.

    Raises:
        UserError: datatrove, Ray or Slurm is missing or refuses.
    """
    numbers = stage.open_tasks()
    if not numbers:
        return
    try:
        import datatrove  # noqa: F401  (whether it is there)
    except ImportError:
        raise UserError(
            f"engine {config.engine} needs datatrove: pip install 'lit_pretrain[cluster]'"
        ) from None
    sizes = [stage.sizes[number] for number in numbers]
    groups = [
        [numbers[position] for position in positions]
        for positions in group_tasks(sizes, config.workers)
    ]
    task = ClusterTask(stage, groups, versions)
    # datatrove remembers finished ranks by directory: another set of open tasks is another
    # directory.
    logs = stage.directory / "logs" / f"{int(time.time() * 1000)}"
    # It holds the pickled tasks, with the credentials of remote sources.
    logs.mkdir(parents=True, mode=0o700)
    with _reporting(stage, numbers, advance):
        if config.engine == "ray":
            _ray(task, len(groups), str(logs), config)
        else:
            _slurm(task, len(groups), logs, config, stage)


def _ray(task: ClusterTask, tasks: int, logs: str, config: EngineConfig) -> None:
    """Run on the Ray cluster at `ray.address`, or start one on this machine if none runs."""
    try:
        import ray
    except ImportError:
        raise UserError("engine ray needs ray: pip install 'lit_pretrain[cluster]'") from None
    from datatrove.executor import RayPipelineExecutor

    with _quiet():
        if not ray.is_initialized():
            own = config.ray.address is None and not os.environ.get("RAY_ADDRESS")
            try:
                ray.init(
                    address="local" if own else config.ray.address,
                    # Of this machine, no more than the run was given, and no dashboard, which takes
                    # seconds to come up.
                    num_cpus=config.workers if own else None,
                    include_dashboard=False if own else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except ConnectionError as error:
                raise UserError(
                    f"no Ray cluster at {config.ray.address!r}: {error}. Start one with `ray start"
                    " --head`."
                ) from None
        with _one_process_per_rank():
            RayPipelineExecutor(
                pipeline=[task],
                tasks=tasks,
                workers=config.workers,
                logging_dir=logs,
                cpus_per_task=1,
                mem_per_cpu_gb=config.ray.memory_gb,
                log_first=False,
            ).run()


class RankWorker:
    """Run ranks in an actor of one process.

    datatrove's own forks a pool in the actor, and a pool waits for ever for a process that the
    kernel killed (seen: `kill -9`, no end after minutes). Ray notices when an actor ends, and
    does its ranks again.
    """

    def get_node_ip(self) -> str:
        """Find the address of the machine that the actor is on."""
        import ray

        address: str = ray.util.get_node_ip_address()
        return address

    def run_for_rank(
        self, executor: Any, ranks: list[int], node_ips: list[str], node_idx: int
    ) -> None:
        """Run some ranks; datatrove's executor calls this."""
        for rank in ranks:
            executor._run_for_rank(rank, 1)  # 0 would log to the terminal


@contextlib.contextmanager
def _one_process_per_rank() -> Iterator[None]:
    """Put our actor in the place of datatrove's, which has no option for it."""
    import datatrove.executor.ray as module

    before = module.RankWorker
    module.RankWorker = RankWorker
    try:
        yield
    finally:
        module.RankWorker = before


class _JobNumbers:
    """Read what `sbatch` prints, and write each number to a file at once.

    Another run may have to cancel the job.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        path.write_text(f"{name}\n", encoding="utf-8")

    def __call__(self, printed: str) -> str:
        """Read the number of the job array that `sbatch` has taken."""
        number = printed.rsplit(maxsplit=1)[-1]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{number}\n")
        return number


def _slurm(
    task: ClusterTask, tasks: int, logs: Path, config: EngineConfig, stage: TaskStage[Any]
) -> None:
    """Run as job arrays until they have left the queue; cancel what is left of them in any case."""
    from datatrove.executor import SlurmPipelineExecutor

    class Executor(SlurmPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
        """Leave out the job that merges statistics.

        It waits in the queue for ever when a task fails.
        """

        def launch_merge_stats(self) -> None:
            """Launch nothing."""

        def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
            """Quote what datatrove writes into its script as it is."""
            task_file = self.logging_dir.resolve_paths("executor.pik")
            directives = slurm_directives({name: str(v) for name, v in sbatch_args.items()})
            written: str = super().get_launch_file_contents(
                {}, run_script.replace(task_file, shlex.quote(task_file))
            )
            first, _, rest = written.partition("\n")
            return "\n".join([first, *directives, rest])

    slurm = config.slurm
    if slurm.partition is None:
        raise UserError("engine slurm needs slurm.partition (see `sinfo`)")
    name = f"lit_pretrain-{stage.state[:16]}-{stage.name}-{logs.name}"
    jobs = logs / _JOBS
    executor = Executor(
        pipeline=[task],
        tasks=tasks,
        workers=config.workers,
        time=slurm.time,
        partition=slurm.partition,
        cpus_per_task=1,
        mem_per_cpu_gb=slurm.memory_gb,
        job_name=name,
        job_id_retriever=_JobNumbers(jobs, name),
        logging_dir=str(logs),
        sbatch_args=dict(slurm.sbatch),
        env_command=slurm.environment
        or f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        qos=slurm.qos,
        mail_type="NONE",
    )
    try:
        try:
            with _quiet():
                executor.run()
        except FileNotFoundError as error:
            raise UserError(f"engine slurm needs `sbatch` on this machine: {error}") from None
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"sbatch refused the job array of {stage.name}: {error}; its script is in {logs}"
            ) from None
        done_since = None
        while _queued(name):
            if not stage.open_tasks():
                done_since = done_since or time.monotonic()
                if time.monotonic() - done_since > _GRACE_SECONDS:
                    break
            time.sleep(_pause(len(stage.sizes)))
    finally:
        _cancel(jobs)


def cancel_left(work: Path) -> None:
    """Cancel the job arrays that a killed run has left in the queue, by its notes in `work`."""
    for jobs in work.glob(f"*/logs/*/{_JOBS}"):
        _cancel(jobs)


def _cancel(jobs: Path) -> None:
    """Cancel job arrays by name and number, and wait until they have gone.

    The name alone finds one that was submitted but whose number was never read.
    """
    name, *numbers = jobs.read_text(encoding="utf-8").split()
    try:
        if not _queued(name, patience=0):
            return
        # Both the number and the name must fit: numbers begin anew when a cluster is set up again.
        subprocess.run(["scancel", "--name", name, *numbers], capture_output=True, check=False)
        begin = time.monotonic()
        while _queued(name, patience=0):
            if time.monotonic() - begin > _END_SECONDS:
                raise UserError(
                    f"the Slurm jobs {', '.join(numbers) or name} do not end; see `squeue`, and run"
                    " again when they have gone"
                )
            time.sleep(_POLL_SECONDS)
    except FileNotFoundError:
        return  # no Slurm on this machine, so no job that could reach it


def _queued(name: str, patience: float = _PATIENCE_SECONDS) -> bool:
    """Check whether a job of this name waits or runs; an array has a largest size, so several may.

    Raises:
        UserError: `squeue` has failed for longer than the controller of a cluster is busy or
            restarted.
    """
    begin = time.monotonic()
    while True:
        found = subprocess.run(
            ["squeue", "--noheader", "--name", name], capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            return bool(found.stdout.strip())
        if time.monotonic() - begin > patience:
            if not patience:
                return False
            raise UserError(
                f"`squeue` has failed for {patience:.0f} s: {found.stderr.strip()}. Run again:"
                " finished tasks are kept."
            )
        time.sleep(10 * _POLL_SECONDS)


def _pause(tasks: int) -> float:
    """Compute the seconds between two looks at the results of so many tasks.

    A shared file system has other things to do.
    """
    return _POLL_SECONDS * (1 + tasks / 1000)


@contextlib.contextmanager
def _reporting(stage: TaskStage[Any], numbers: list[int], advance: Advance) -> Iterator[None]:
    """Advance by the size of each task whose result appears."""
    left, stop = set(numbers), threading.Event()

    def look() -> None:
        done = {number for number in left if stage.done(number)}
        advance(sum(stage.sizes[number] for number in done))
        left.difference_update(done)

    def watch() -> None:
        while not stop.wait(_pause(len(numbers))):
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
    """Keep datatrove's and Ray's own reports off the terminal.

    The log of each task lies in the directory of its stage.
    """
    from datatrove.utils.logging import logger

    sink = io.StringIO()
    logger.remove()
    with contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
        yield sink
