"""Stages of independent tasks: what a task is, how it is marked as done, and what runs the tasks.

A task is a pure function of the config and of files that earlier stages finished, so any engine
may run it, at any time, again. It writes its files under temporary names and renames them; when
it has returned, its result is written, likewise, and *that file is the mark that it is done*. A
run that goes on after a fault does the tasks without one. An engine's exit code is never
believed: Ray's was seen to be 0 with a task missing.

A cluster may run a task late, after its preparation was stopped and another one was begun in the
same place. So the working directory is named by a hash of all that a task may depend on (`state`)
and holds it; a task that does not find it there does nothing; and a result that does not carry it
does not count.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file

Advance = Callable[[int], None]
"""Takes how many bytes were done since the last call."""
Result = TypeVar("Result")
"""What a task finds: a TypedDict, for it is written as JSON. JSON turns tuples into lists; whoever
reads a result unpacks them and does not compare them.
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
        except Exception as error:
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
