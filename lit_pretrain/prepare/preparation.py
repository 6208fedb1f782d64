"""Preparation: what one run of the pipeline works on, and what its stages have found of every
part so far.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lit_pretrain.prepare import directory
from lit_pretrain.prepare.engine.run_stage import run_stage
from lit_pretrain.prepare.engine.task_stage import EngineConfig, PrepareTask, TaskStage
from lit_pretrain.prepare.funnel import Funnel
from lit_pretrain.prepare.inputs import Inputs, cut
from lit_pretrain.prepare.prepare_config import PrepareConfig


class Preparation:
    """One run of the pipeline in a directory of its own.

    Args:
        config: What to prepare.
        inputs: The files of every source.
        work: The directory.
        state: Hash of what the run is made of (`directory.workspace`).
        versions: Of what makes the bytes; workers on other machines must have the same.
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
        self.clean: list[dict[str, Any]] = []
        """Of each part: what reading and cleaning found, and its `funnel`, to which later
        stages add their steps.
        """
        self.left: list[int] = []
        """Of each part: bytes that are left before documents are compared."""
        self.begins: tuple[int, ...] = ()
        """Of each part: number of its first document in the corpus, before documents are
        compared.
        """
        self.documents = 0
        """Of the corpus, likewise."""
        self.held_out: dict[str, dict[str, str]] = {}
        """Of each source and held-out split: how its text was chosen (`Source.held_out`)."""
        self._state = state
        self._engine = EngineConfig(
            engine=config.engine,
            workers=config.workers or _processors(),
            ray=config.ray,
            slurm=config.slurm,
        )
        self._stages = 0

    @property
    def dataset(self) -> Path:
        """What becomes `out`."""
        return self.work / directory.DATASET

    def do(
        self,
        name: str,
        title: str,
        task: PrepareTask,
        sizes: Sequence[int],
        unit: Literal["bytes", "tasks"] = "bytes",
    ) -> list[dict[str, Any]]:
        """Runs one stage to its end; returns the results of its tasks (`Stage`)."""
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
        return run_stage(stage, self._engine, self.versions)

    def number_documents(self) -> None:
        """Notes what is left of every part: from here on documents go by their number in the
        corpus.
        """
        self.left = self.bytes_left()
        counts = [result["funnel"][-1]["documents"] for result in self.clean]
        self.begins = tuple(itertools.accumulate(counts[:-1], initial=0))
        self.documents = sum(counts)

    def bytes_left(self) -> list[int]:
        """Of each part, after the last step of its funnel."""
        return [result["funnel"][-1]["bytes"] for result in self.clean]

    def of(self, name: str) -> list[int]:
        """Numbers of the parts of a source."""
        return [number for number, part in enumerate(self.parts) if part.source == name]

    def funnel(self, name: str) -> Funnel:
        """The steps of a source, over its parts."""
        funnel = Funnel([])
        for number in self.of(name):
            funnel.add(self.clean[number]["funnel"])
        return funnel


def _processors() -> int:
    """Those that this process may use, which on a cluster is not all that there are."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
