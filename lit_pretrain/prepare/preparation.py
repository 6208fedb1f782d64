"""One run of the pipeline: its inputs and directory, and what its stages found in every part."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from lit_pretrain.decontaminate.decontamination_record import TallyRecord
from lit_pretrain.prepare import directory
from lit_pretrain.prepare.engine import cluster
from lit_pretrain.prepare.engine.task_stage import (
    EngineConfig,
    PrepareTask,
    Result,
    TaskStage,
    run_locally,
)
from lit_pretrain.prepare.funnel import Funnel, RejectRecord, StepRecord
from lit_pretrain.prepare.inputs import Inputs, cut
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import show_progress


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


class Preparation:
    """One run of the pipeline in a directory of its own.

    Args:
        config: What to prepare.
        inputs: The files of every source.
        work: The directory.
        state: Hash of everything that decides the files in it (`directory.workspace`).
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
        return self.work / directory.DATASET

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

    def number_documents(self) -> None:
        """Number the documents that are left; from here on each has a number in the corpus."""
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
