"""Run: a stage on the engine of the config, with a progress bar."""

from __future__ import annotations

from typing import Any

from lit_pretrain.prepare.engine import cluster, local
from lit_pretrain.prepare.engine.task_stage import EngineConfig, TaskStage
from lit_pretrain.prepare.progress_table import working


def run_stage(
    stage: TaskStage, config: EngineConfig, versions: dict[str, str]
) -> list[dict[str, Any]]:
    """Does what is open of a stage, and gives the results of all its tasks.

    Args:
        stage: What to do.
        config: What does it.
        versions: Of this process; a machine that has others does nothing.

    Raises:
        UserError: A task failed for a reason that the user can mend, was killed, or the engine
            cannot be used.
        RuntimeError: A task failed for another reason.
    """
    open_tasks = stage.open_tasks()
    if not open_tasks:
        return stage.results()
    with working(stage.title, sum(stage.sizes[number] for number in open_tasks), stage.unit) as (
        advance,
        figures,
    ):
        if len(open_tasks) < len(stage.sizes):
            figures.append(
                f"{len(stage.sizes) - len(open_tasks)} of {len(stage.sizes)} tasks were done before"
            )
        if config.engine == "local":
            local.run_locally(stage, config.workers, advance)
        else:
            cluster.run_on_cluster(stage, config.workers, advance, config, versions)
    return stage.results()
