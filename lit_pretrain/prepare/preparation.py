"""One run of the pipeline: its directories, its inputs, and what its stages found in every part.

A dataset appears whole, and finished tasks outlive a fault.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from lit_pretrain.corpus import manifest
from lit_pretrain.decontaminate.evaluation_set import TallyRecord
from lit_pretrain.errors import UserError
from lit_pretrain.files import rename_durably, sync, write_file
from lit_pretrain.prepare.engine import cluster
from lit_pretrain.prepare.engine.cluster import cancel_left
from lit_pretrain.prepare.engine.task_stage import (
    STATE,
    EngineConfig,
    PrepareTask,
    Result,
    TaskStage,
    read_state,
    run_locally,
)
from lit_pretrain.prepare.funnel import Funnel, RejectRecord, StepRecord, step_after_removal
from lit_pretrain.prepare.inputs import Inputs, cut
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import say, show_progress

DATASET = "dataset"
"""Directory below the working directory that becomes `out`."""


def partial_directory(out: Path) -> Path:
    """Name the directory that a dataset grows in: beside `out`, so that one rename finishes it."""
    return out.parent / f".{out.name}.partial"


def check_free(out: Path) -> None:
    """Refuse a place that holds something else.

    Raises:
        UserError: It is a file, or a directory with content.
    """
    if out.is_dir():
        if found := sorted(child.name for child in out.iterdir()):
            raise UserError(
                f"out={out} exists and is not a prepared dataset (no {manifest.MANIFEST_FILENAME};"
                f" it holds {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}). Choose"
                " another `out`, or remove it."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(
            f"out={out} exists and is not a directory. Choose another `out`, or remove it."
        )


@contextlib.contextmanager
def workspace(out: Path, state: str) -> Iterator[Path]:
    """Yield a directory to work in, and turn its `dataset` into `out` when the block succeeds.

    The state names the directory and lies in it: a task of another config that a cluster runs late
    finds neither its directory nor its state, and cannot write into this one. Files that a run with
    the same state left after a fault are kept; those of other states are removed. A lock, which
    ends with its process, keeps two runs from sharing the directory.

    Args:
        out: The dataset's directory.
        state: Hash of config, input and versions: two runs with the same one can go on with each
            other's files.

    Raises:
        UserError: The place cannot be written, the disk is full, or another process works there.
    """
    root = partial_directory(out)
    work = root / state[:16]
    try:
        lock = _lock_directory(root, out)
        for child in root.iterdir():
            if child != work or read_state(work) != state:
                _remove(child)
        if not work.exists():
            work.mkdir()
            write_file(work / STATE, state)
        else:
            cancel_left(work)
            if _worth_keeping(work):
                say(f"going on with what an earlier run left in {work}")
    except OSError as error:
        raise UserError(
            f"out={out} cannot be written: {error.strerror} ({error.filename or root}). Choose"
            " another `out`, or mend its permissions."
        ) from None
    finished = False
    try:
        yield work
        sync(work / DATASET)
        out.parent.mkdir(parents=True, exist_ok=True)
        rename_durably(work / DATASET, out)  # replaces an empty directory
        finished = True
    except OSError as error:
        raise UserError(
            f"cannot write the dataset below {work}: {error.strerror or error}. Free some space and"
            " run again: finished tasks are kept; or choose another `out`."
        ) from error
    finally:
        if root.exists() and _same(root, lock) and (finished or not _worth_keeping(work)):
            shutil.rmtree(root, ignore_errors=True)
        os.close(lock)


def clear_partial_directory(out: Path) -> None:
    """Remove what a run that was killed after its last rename left beside a finished dataset.

    Nothing is removed while another run works there.
    """
    root = partial_directory(out)
    if not root.is_dir():
        return
    lock = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for child in root.iterdir():
            _remove(child)
        root.rmdir()
    except BlockingIOError:
        pass
    except OSError as error:
        say(f"{root}, which a killed run left, cannot be removed: {error.strerror}")
    finally:
        os.close(lock)


def _worth_keeping(work: Path) -> bool:
    """Check whether a task has finished here, or a cluster has left its logs."""
    return any(work.glob("*/*.json")) or any(work.glob("*/logs"))


def _lock_directory(root: Path, out: Path) -> int:
    """Create and lock the directory, and return the descriptor of the lock."""
    while True:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"another `prepare` is writing {out} right now; wait for it, or choose another"
                " `out`"
            ) from None
        if root.exists() and _same(root, lock):
            return lock
        os.close(lock)  # the other run finished between the two calls


def _remove(path: Path) -> None:
    """Remove what an earlier run left, its jobs first."""
    if path.is_dir() and not path.is_symlink():
        cancel_left(path)
        shutil.rmtree(path)
    else:
        path.unlink()


def _same(path: Path, descriptor: int) -> bool:
    """Check whether a path still names the directory that was opened."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))


class CountsRecord(TypedDict):
    """The `ReadCounts` of a part as JSON."""

    input_bytes: int
    records: int
    documents: int
    bytes: int
    empty: dict[str, int]
    bad: dict[str, int]
    changed: dict[str, int]
    unread_bytes: int


class ExampleRecord(TypedDict):
    """A `BadRecord` as JSON."""

    origin: str
    reason: str
    detail: str
    excerpt: str
    unread_bytes: int


class CleanResult(TypedDict):
    """What reading and cleaning found in a part: the result of a CleanTask."""

    funnel: list[StepRecord]
    """The steps of the part; later stages add theirs."""
    files: list[tuple[str, str]]
    """Name and sha256 of each of its files."""
    rejects: list[RejectRecord]
    """A sample of the documents that its steps left out."""
    decontamination: TallyRecord
    """The `DecontaminationTally` of its documents as JSON; empty if no set is checked."""
    read: CountsRecord
    bad: dict[str, ExampleRecord]
    """Reason -> the first record that could not be used."""
    unsegmented: dict[str, int]
    """Language -> documents whose words were counted by white space, for want of a segmenter."""


class DropResult(TypedDict):
    """What a task that removes documents of a part did."""

    removed: int
    """Documents that were removed."""
    bytes: int
    """UTF-8 bytes of their text."""
    sampled: list[tuple[int, int]]
    """Old and new number of each sampled document that is left."""
    rejects: list[RejectRecord]
    """A sample of the documents that were removed."""


class Preparation:
    """One run of the pipeline in a directory of its own.

    Args:
        config: What to prepare.
        inputs: The files of every source.
        work: The directory.
        state: Hash of everything that decides the files in it (`workspace`).
        versions: Versions of the libraries that decide the bytes; workers on other machines must
            have the same.
    """

    def __init__(
        self,
        config: PrepareConfig,
        inputs: dict[str, Inputs],
        work: Path,
        state: str,
        versions: dict[str, str],
    ) -> None:
        self.config = config
        self.inputs = inputs
        self.work = work
        self.versions = versions
        self.parts = tuple(cut(inputs, config.part_bytes))
        self.clean: list[CleanResult] = []
        """Results of reading and cleaning, by part."""
        self.left: list[int] = []
        """Bytes that are left before documents are compared, by part."""
        self.begins: tuple[int, ...] = ()
        """Number of the first document in the corpus, before documents are compared, by part."""
        self.documents = 0
        """Documents of the corpus, before they are compared."""
        self.duplicates: dict[str, list[RejectRecord]] = {}
        """Of each source, a sample of the documents that were removed as duplicates."""
        self.held_out: dict[str, dict[str, str]] = {}
        """How text was chosen for each held-out split, by source (`Source.held_out`)."""
        self._state = state
        self._engine = EngineConfig(
            engine=config.engine,
            workers=config.workers or _usable_processors(),
            ray=config.ray,
            slurm=config.slurm,
        )
        self._stages = 0

    @property
    def dataset(self) -> Path:
        """Name the directory that becomes `out`."""
        return self.work / DATASET

    def do(
        self,
        name: str,
        title: str,
        task: PrepareTask[Result],
        sizes: Sequence[int],
        unit: Literal["bytes", "tasks"] = "bytes",
    ) -> list[Result]:
        """Run one stage to its end on the engine of the config, with a progress bar.

        Args:
            name: Names the directory of the results, with the number of the stage before it.
            title: What the stage does, for the user.
            task: What to do for each number below `len(sizes)`.
            sizes: Work per task.
            unit: Unit of the sizes.

        Returns:
            The results of all tasks; those that an earlier run finished are not done again.

        Raises:
            UserError: A task failed for a reason that the user can mend, was killed, or the engine
                cannot be used.
            RuntimeError: A task failed for another reason.
        """
        self._stages += 1
        stage = TaskStage(
            name=f"{self._stages:02d}-{name}",
            title=title,
            task=task,
            sizes=sizes,
            work=self.work,
            state=self._state,
            unit=unit,
        )
        open_tasks = stage.open_tasks()
        if not open_tasks:
            return stage.results()
        work = sum(sizes[number] for number in open_tasks)
        with show_progress(title, work, unit) as (advance, figures):
            if len(open_tasks) < len(sizes):
                figures.append(
                    f"{len(sizes) - len(open_tasks)} of {len(sizes)} tasks were done before"
                )
            if self._engine.engine == "local":
                run_locally(stage, self._engine.workers, advance)
            else:
                cluster.run_on_cluster(stage, advance, self._engine, self.versions)
        return stage.results()

    def record_removal(self, part: int, name: str, reason: str, found: DropResult) -> None:
        """Add the step to a part's funnel that removed some of its documents.

        Args:
            part: Number of the part.
            name: Name of the step.
            reason: Why they were removed.
            found: Result of the task.
        """
        step, numbers = self.clean[part]["funnel"][-1], dict(found["sampled"])
        after = step_after_removal(
            step,
            name,
            documents=step["documents"] - found["removed"],
            size=step["bytes"] - found["bytes"],
            gone={document for _, _, document in step["sample"] if document not in numbers},
            removed={reason: found["removed"]} if found["removed"] else {},
        )
        after["sample"] = [
            (key, text, numbers[document]) for key, text, document in after["sample"]
        ]
        self.clean[part]["funnel"].append(after)
        self.clean[part]["rejects"] += found["rejects"]

    def number_documents(self) -> None:
        """Give each document that is left its number in the corpus."""
        self.left = self.bytes_left()
        counts = [result["funnel"][-1]["documents"] for result in self.clean]
        self.begins = tuple(itertools.accumulate(counts[:-1], initial=0))
        self.documents = sum(counts)

    def bytes_left(self) -> list[int]:
        """List, by part, the bytes that are left after the last step of its funnel."""
        return [result["funnel"][-1]["bytes"] for result in self.clean]

    def parts_of(self, name: str) -> list[int]:
        """List the numbers of the parts of a source."""
        return [number for number, part in enumerate(self.parts) if part.source == name]

    def funnel(self, name: str) -> Funnel:
        """Add up the steps of a source over its parts."""
        funnel = Funnel([])
        for number in self.parts_of(name):
            funnel.add(self.clean[number]["funnel"])
        return funnel


def _usable_processors() -> int:
    """Count the processors that this process may use, which on a cluster is not all of them."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
