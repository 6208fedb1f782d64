"""Stages of independent tasks, and the engine that runs them on this machine.

A task is a pure function of the config and of files that earlier stages finished, so any engine
may run it, at any time, again. It writes its files under temporary names and renames them; when
it has returned, its result is written, likewise, and *that file is the mark that it is done*. A
run that goes on after a fault does the tasks without one. An engine's exit code is never
believed: Ray's was seen to be 0 with a task missing.

A cluster may run a task late, after its preparation was stopped and another one was begun in the
same place. So the working directory is named by a hash of all that a task may depend on (`state`)
and holds it; a task that does not find it there does nothing; and a result that does not carry it
does not count.

The local engine runs tasks in this process, or each in a process of its own. It is not datatrove's
LocalPipelineExecutor: that one's pool waits for ever for a worker that the kernel killed (seen:
`kill -9` of a worker, no end after minutes), and its tasks outlive a parent that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from multiprocessing.sharedctypes import Synchronized

Advance = Callable[[int], None]
"""Takes how many bytes were done since the last call."""
Result = TypeVar("Result")
"""What a task finds: a TypedDict, a list or a number, for it is written as JSON. JSON turns tuples
into lists; whoever reads a result unpacks them and does not compare them.
"""
PrepareTask = Callable[[int, Advance], Result]
"""(number of the task, advance) -> its result. Picklable: it may run in another process or on
another machine.
"""


@dataclass(kw_only=True)
class RayConfig:
    """Options of the engine `ray`."""

    address: str | None = None
    """Address of a running cluster, or `auto`. Default: the one that RAY_ADDRESS names, else a
    cluster on this machine that lasts as long as the run.
    """
    memory_gb: float = 2.0
    """Memory that a task reserves, GB."""


@dataclass(kw_only=True)
class SlurmConfig:
    """Options of the engine `slurm`.

    Every stage is a job array; this process waits for it, on a machine that has `sbatch`.
    """

    partition: str | None = None
    """Partition that the jobs run in; `sinfo` lists them."""
    time: str = "04:00:00"
    """Time limit of a task."""
    memory_gb: int = 4
    """Memory of a task, GB."""
    qos: str | None = None
    """Quality of service, where the cluster has them."""
    environment: str | None = None
    """Command that activates the Python environment on the nodes. Default: the directory of
    this Python comes first in PATH.
    """
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, e.g. `{account: mine}`."""


@dataclass(kw_only=True)
class EngineConfig:
    """What runs the tasks. Nothing here changes the result."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """local: processes of this machine. ray, slurm: a cluster whose machines see the inputs and
    `out` under the same paths.
    """
    workers: int = 1
    """Tasks at a time."""
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


STATE = "state"
"""Name of the file that holds the state of a working directory."""


class StaleTask(Exception):
    """A task belongs to a preparation that has ended, or that another one has replaced."""


@dataclass(frozen=True)
class TaskStage(Generic[Result]):
    """Independent tasks of one kind, numbered from 0 to len(sizes) - 1."""

    name: str
    """Names the directory of the results, in the order of the work: 01-clean."""
    title: str
    """What the stage does, for the user."""
    task: PrepareTask[Result]
    sizes: Sequence[int]
    """Work per task, in `unit`: what the progress bar counts."""
    work: Path
    """The directory of the preparation, seen by every machine that runs tasks."""
    state: str
    """Hash of what the preparation is made of: config, input, versions."""
    unit: Literal["bytes", "tasks"] = "bytes"
    """Unit of the sizes."""

    @property
    def directory(self) -> Path:
        """Name the directory of the results."""
        return self.work / self.name

    def open_tasks(self) -> list[int]:
        """List the tasks that are not done."""
        return [number for number in range(len(self.sizes)) if not self.done(number)]

    def done(self, number: int) -> bool:
        """Check whether a task has a result of this state."""
        begin = self._begin()
        try:
            with self._result(number).open("rb") as file:
                return file.read(len(begin)) == begin
        except FileNotFoundError:
            return False

    def run(self, number: int, advance: Advance) -> None:
        """Do one task and write its result; write a failure to a file for the driver, and raise it.

        Raises:
            StaleTask: The working directory belongs to another preparation by now.
        """
        if read_state(self.work) != self.state:
            raise StaleTask(
                f"task {number} of {self.name}: {self.work} does not belong to its preparation any"
                " more; nothing was done"
            )
        self.directory.mkdir(exist_ok=True)
        self._failure(number).unlink(missing_ok=True)
        try:
            result = self.task(number, advance)
            write_file(
                self._result(number),
                f"{self._begin().decode()}{json.dumps(result, ensure_ascii=False)}}}",
            )
        except Exception as error:  # the parent reads it from the task's result
            user = isinstance(error, UserError)
            facts = {
                "user": user,
                "disk": isinstance(error, OSError),
                "message": str(error) if user else traceback.format_exc(),
            }
            write_file(self._failure(number), json.dumps(facts))
            raise

    def results(self) -> list[Result]:
        """Read the results of all tasks, by number.

        Raises:
            UserError: A task failed for a reason that the user can mend, or did not end.
            RuntimeError: A task failed for another reason: our mistake.
        """
        missing = self.open_tasks()
        for number in missing:
            failure = self.failure(number)
            if failure is not None:
                raise failure
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.sizes)} tasks of {self.name} did not end (the first:"
                f" {missing[0]}): they were killed, most often for lack of memory or time, met a"
                f" full disk, or never started (logs: {self.directory / 'logs'}). Run again:"
                " finished tasks are kept."
            )
        return [
            json.loads(self._result(number).read_text(encoding="utf-8"))["result"]
            for number in range(len(self.sizes))
        ]

    def failure(self, number: int) -> Exception | None:
        """Read why a task failed, if it could still write that.

        Returns:
            A UserError if the user can mend it.
        """
        try:
            facts = json.loads(self._failure(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if facts["user"]:
            return UserError(facts["message"])
        if facts["disk"]:
            return self.disk_trouble(number, facts["message"].strip().splitlines()[-1])
        return RuntimeError(f"task {number} of {self.name} failed:\n{facts['message']}")

    def disk_trouble(self, number: int, what: str) -> UserError:
        """Explain a task that an OSError has ended."""
        return UserError(
            f"task {number} of {self.name} could not write or read: {what}. Free some space, then"
            " run again: finished tasks are kept."
        )

    def _begin(self) -> bytes:
        """Spell the beginning of a result: with the state first, `done` need not read the rest."""
        return f'{{"state": "{self.state}", "result": '.encode()

    def _result(self, number: int) -> Path:
        return self.directory / f"{number:05d}.json"

    def _failure(self, number: int) -> Path:
        return self.directory / f"{number:05d}.failed"


def read_state(work: Path) -> str | None:
    """Read the state that a working directory belongs to; None when the directory has gone."""
    try:
        return (work / STATE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


_PRELOAD = [
    "lit_pretrain.prepare.pipeline",
    "numpy",
    "pyarrow.parquet",
    "tiktoken",
    "tokenizers",
    "xxhash",
]
"""Imported once by the server that tasks are forked from."""
_POLL_SECONDS = 0.2
_DISK_CODE = 74
"""Exit code of a task that met a full or broken disk (EX_IOERR of sysexits.h): it may not have
been able to write its failure.
"""


def run_locally(stage: TaskStage[Any], workers: int, advance: Advance) -> None:
    """Do the open tasks of a stage.

    Args:
        stage: What to do; its files say how each task ended.
        workers: Tasks at a time; with one, they run in this process.
        advance: Takes the work that was done since its last call.
    """
    tasks = stage.open_tasks()
    # The largest first: with few tasks the last one decides how long all of it takes.
    tasks.sort(key=lambda number: (-stage.sizes[number], number))
    if workers == 1 or len(tasks) == 1:
        for number in tasks:
            try:
                stage.run(number, advance)
            except OSError as error:
                raise stage.disk_trouble(number, f"{type(error).__name__}: {error}") from error
        return
    import multiprocessing.connection  # costs `prepare --help` 10 ms above

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    done: Synchronized[int] = context.Value("q", 0)
    reported = 0
    running: dict[int, ForkServerProcess] = {}
    try:
        while tasks or running:
            while tasks and len(running) < workers:
                number = tasks.pop(0)
                process = context.Process(
                    target=_child, args=(stage, number, done), name=f"{stage.name}-{number}"
                )
                process.start()
                running[number] = process
            multiprocessing.connection.wait(
                [process.sentinel for process in running.values()], timeout=_POLL_SECONDS
            )
            advance(done.value - reported)
            reported = done.value
            for number, process in list(running.items()):
                if process.exitcode is not None:
                    process.join()
                    del running[number]
                    if process.exitcode:
                        _explain(stage, number, process.exitcode)
        advance(done.value - reported)  # what the last tasks did after the last look
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _explain(stage: TaskStage[Any], number: int, code: int) -> None:
    """Raise the failure that a task has written, or say which signal killed it."""
    failure = stage.failure(number)
    if failure is not None:
        raise failure
    if code == _DISK_CODE:
        raise stage.disk_trouble(number, "OSError, and there was no room to write down which")
    if code > 0:
        stage.results()
    raise UserError(
        f"task {number} of {stage.name} was killed by signal {-code}"
        + (" (most often for lack of memory; fewer workers need less)" if code == -9 else "")
        + ". Run again: finished tasks are kept."
    )


def _child(stage: TaskStage[Any], number: int, done: Synchronized[int]) -> None:
    """Run a task in a process of its own."""
    # A terminal sends Ctrl-C to all processes; the one that started this task ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def advance(size: int) -> None:
        with done.get_lock():
            done.value += size

    try:
        stage.run(number, advance)
    except OSError:
        os._exit(_DISK_CODE)
    except Exception:
        os._exit(1)  # `run` has written the failure; a traceback on the terminal helps nobody


def _end_with_parent() -> None:
    """End the task when the process that started it has gone, however it ended."""
    from multiprocessing.process import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
