"""The folder of a run, and the checkpoint that it goes on from."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

from jsonargparse import Namespace

from lit_pretrain.checkpoint.layout import newest_complete, resolve
from lit_pretrain.checkpoint.resume_contract import check_fork, check_resume, data_of
from lit_pretrain.checkpoint.weights import read_record
from lit_pretrain.cli.command.notices import warn
from lit_pretrain.cli.train.ranks import LAUNCHED_NAME, is_first_process
from lit_pretrain.cli.train.run_settings import RunSettings
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import check_run_unused


class RunPlace(NamedTuple):
    """Where a run lives."""

    folder: Path
    checkpoint: Optional[Path]
    """What it goes on from, its own or another run's; None: it starts with step 0."""


def resolve_place(config: Namespace, settings: RunSettings, verb: str) -> RunPlace:
    """Find the folder and the checkpoint.

    Args:
        config: Parsed config; its `name` and `runs` are filled in.
        settings: Those of the run in it.
        verb: Begins the name of a run that is given none.

    Raises:
        UserError: The name cannot be, or there is no such checkpoint.
    """
    checkpoint: Optional[Path] = None
    launched = "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ
    if settings.resume not in ("never", "auto"):
        checkpoint = resolve(settings.resume)
        run = checkpoint.parent.parent
        if config.name is None:
            config.runs, config.name = str(run.parent), run.name
        elif (Path(config.runs) / config.name).resolve() != run.resolve():
            raise UserError(
                f"--resume {settings.resume} goes on with the run {run}, but --name is"
                f" {config.name!r}; leave --name out, or start another run from that checkpoint"
                " with --fork or --from"
            )
    if config.name is None and launched:
        config.name = os.environ.get(LAUNCHED_NAME)
    if config.name is None:
        if launched:
            raise UserError("several processes need one run folder: give --name")
        config.name = f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"
    if Path(config.name).name != config.name:
        raise UserError(
            f"--name {config.name!r} must be a plain name without {os.sep!r}; --runs says in which"
            " folder runs lie"
        )
    folder = Path(config.runs) / config.name
    if settings.resume == "auto":
        checkpoint = newest_complete(folder, warn)
    if settings.fork is not None and checkpoint is None:
        checkpoint = resolve(settings.fork)
    return RunPlace(folder, checkpoint)


def check_place(
    place: RunPlace,
    config: Namespace,
    settings: RunSettings,
    *,
    contract: Mapping[str, Any],
    data: BaseData,
) -> None:
    """Refuse a checkpoint that the run cannot go on from, and a folder that holds another run.

    Args:
        place: From `resolve_place`.
        config: Resolved config.
        settings: Those of the run in it.
        contract: What decides the numbers of the run.
        data: Its data.

    Raises:
        UserError: Says what differs, or that there is nothing left to do.
    """
    if place.checkpoint is not None:
        saved = read_record(place.checkpoint)
        forks = settings.fork is not None and place.checkpoint.parent.parent != place.folder
        (check_fork if forks else check_resume)(saved.contract, contract, str(place.checkpoint))
        if forks:
            before, now = data_of(saved.contract), data_of(contract)
            data.check_fork(before, now, step=saved.step, checkpoint=str(place.checkpoint))
        only_validates = saved.step == config.max_steps and saved.validation_due
        if saved.step >= config.max_steps and not only_validates:
            raise UserError(
                f"{place.checkpoint} stands at step {saved.step} and the run ends at"
                f" {config.max_steps}: nothing is left to do"
            )
    if is_first_process():
        if settings.resume == "never":
            check_run_unused(place.folder)
        # Processes that Lightning launches parse the same command line and must not choose a name
        # of their own.
        os.environ[LAUNCHED_NAME] = config.name
