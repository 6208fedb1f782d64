"""The settings of a run as a whole, its folder, and the checkpoint that it continues from."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock
from jsonargparse import Namespace

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.checkpoint.layout import CheckpointRecord, newest_complete, resolve
from lit_pretrain.checkpoint.remote_run import RemoteRun, check_home
from lit_pretrain.checkpoint.resume_contract import (
    check_fork,
    check_resume,
    data_of,
    fits_skips,
    held_of,
    skips_of,
)
from lit_pretrain.checkpoint.weights import read_record
from lit_pretrain.cli.train.ranks import LAUNCHED_NAME, is_first_process
from lit_pretrain.cli.train.resolve import optimizer_of
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import is_remote
from lit_pretrain.optim import OptimizerRecipe, Schedule
from lit_pretrain.parallel.mesh import Parallel
from lit_pretrain.report.rewinds import Rewind, read_rewinds
from lit_pretrain.report.run_folder import (
    ABANDONED,
    RunLock,
    check_run_name,
    check_run_unused,
    make_run_folder,
    read_skips,
)
from lit_pretrain.skips import Skips
from lit_pretrain.stage.guard import GuardSettings


@dataclass
class RunSettings:
    """The run as a whole: where it lives, how long it goes, how often it looks around.

    Every "every" counts optimizer steps.
    """

    name: str | None = None
    """Name of the run; its folder is <runs>/<name>. Default: the verb and the time."""
    runs: str = "runs"
    """Folder that holds the run folders, or an address such as s3://bucket/runs: then the run lives
    there and has a copy on the local disk, and resume=auto goes on from it on an empty machine.
    """
    local_runs: str = "runs"
    """With runs at an address: the folder that holds the local copies."""
    resume: str = "never"
    """never: a new run. auto: go on from the newest complete checkpoint of the run, or start
    it. Or the path of one checkpoint.
    """
    fork: str | None = None
    """A checkpoint whose whole state (weights, moments, place in the data) a new run goes on from,
    with its own schedule, length and settings of the optimizer.
    """
    skip_steps: str | None = None
    """Optimizer steps whose samples are left out of the order: BEGIN:END without END, such as
    1200:1210, several with commas. Steps are numbered as the run would make them if it left nothing
    out (`inspect order` shows both numbers). A run keeps what it left out; a resume adds to it,
    and goes back to a checkpoint from before the first step that it adds.
    """
    rewind_to: int | None = None
    """With resume=auto: go back to the newest checkpoint of at most so many steps (0: begin anew),
    and set the newer ones aside. Given again, as by a scheduler, it does nothing.
    """
    guard: GuardSettings = field(default_factory=GuardSettings)
    """What happens when a step spikes, and when the run collapses."""
    accept: tuple[str, ...] = ()
    """Fields in which the data may deliberately differ from the parent: tokenizer, vocabulary,
    bos_id, eos_id, template.
    """
    max_steps: int | None = None
    """Length of the run in optimizer steps. At most one of max_steps, max_epochs, max_tokens and
    max_flops; with none, a run takes 300 steps of prepared text, or an epoch of rows.
    """
    max_epochs: float | None = None
    """Length of the run in epochs of post-training data, rounded up to whole steps."""
    max_tokens: float | None = None
    """Length of the run in input tokens, rounded up to whole steps."""
    max_flops: float | None = None
    """Length of the run in training FLOPs (6 per matmul parameter and token, plus attention),
    rounded up to whole steps.
    """
    forecast: str | None = None
    """What loss to expect, drawn beside the validation's in TensorBoard and compared in summary.md:
    a law of your own runs, kept by `lit_pretrain scaling fit ... --out FILE`, or a published one by
    name. Default: the published `besiroglu`, where it covers the run.
    """
    allow_oom: bool = False
    """Start even if the planned peak of memory is more than the device has; else such a run is
    refused before its weights are made.
    """
    log_every: int = 10
    """Steps between two lines of metrics."""
    validate_every: int = 100
    """Steps between two validations; there is always one at the end. 0: only that one."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; there is always one at the end. 0: only that one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the one with the best validation is kept beside them."""
    parallel: Parallel | Literal["auto"] | None = None
    """How the devices divide the work, beyond one axis: sharding, copies, tensor and context
    parallelism. auto: whatever `plan --layout auto` finds fastest on this kind of GPU, with its
    micro-batch and activation checkpointing. Default: trainer.strategy says it.
    """
    sharded_checkpoints: bool = False
    """With parallel or strategy fsdp: one checkpoint folder written by all ranks, instead of one
    file gathered on rank 0.
    """
    async_checkpoints: bool = False
    """Write checkpoints while training goes on: a save stops it only until the state is copied to
    the host's memory, which takes as much of it as a checkpoint is large.
    """
    hang_timeout: float | None = 1800.0
    """Seconds without progress of any rank (a batch, a checkpoint) after which the run ends with
    exit code 76, and <run>/hang says where each rank stood. null: it is not watched.
    """
    statistics_every: int = 0
    """Steps between two looks into every layer, for TensorBoard and metrics.jsonl: RMS and largest
    absolute value of activations, attention logits and gradients, and the ratio of update to
    weight. The update of such a step keeps a second copy of the trained weights. 0: none.
    """
    noise_scale_every: int = 0
    """Steps between two measurements of the gradient noise scale, in tokens and by role, for
    TensorBoard, metrics.jsonl and the summary: the batch from which on larger steps pay less and
    less. It compares the gradients of a step's micro-batches, over all ranks. 0: none.
    """
    profile: bool = False
    """Trace three steps with torch's profiler, once the first ones have compiled: the ten most
    expensive operations as a table, and <run>/profile/steps-*.json for https://ui.perfetto.dev or
    chrome://tracing.
    """
    sample_every: int = 0
    """Steps between two text samples; there are always some at the end. 0: only those."""
    sample_prompts: tuple[str, ...] = ("", "def ", "The ")
    """Prompts of the text samples."""
    sample_tokens: int = 96
    """Longest text sample in tokens."""
    evaluate_every: int = 0
    """Steps between two evaluations of evaluate_tasks; with tasks there is always one at the
    end. 0: only that one.
    """
    evaluate_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, names or YAML files, measured in training as
    `lit_pretrain evaluate` does; keep them light.
    """
    evaluate_include: str | None = None
    """A folder of more task files."""
    evaluate_limit: int | None = 100
    """Only the first so many items of each task."""


class RunPlace(NamedTuple):
    """Where a run lives."""

    folder: Path
    checkpoint: Path | None
    """What it goes on from, its own or another run's; None: it starts with step 0."""
    skips: Skips = Skips()
    """Optimizer steps that it leaves out: as asked for now, before, and by what it goes on from."""
    held: Skips = Skips()
    """Steps of the run whose update it leaves out."""
    rewinds: tuple[Rewind, ...] = ()
    """How often it went back; the last one is to be done now if it is not done yet."""
    home: RemoteRun | None = None
    """Where it is uploaded to; None: it lives in its folder."""

    @property
    def forks(self) -> bool:
        """Tell whether the run begins with the whole state of another run."""
        if self.checkpoint is None:
            return False
        return self.checkpoint.parent.parent.resolve() != self.folder.resolve()

    @property
    def resumes(self) -> bool:
        """Tell whether the run goes on from a checkpoint of its own."""
        return self.checkpoint is not None and not self.forks

    @property
    def back_to(self) -> int | None:
        """Return the step to which the run goes back now; None if it does not."""
        pending = bool(self.rewinds) and not self.rewinds[-1].done
        return self.rewinds[-1].to if pending else None


def resolve_place(
    config: Namespace,
    settings: RunSettings,
    verb: str,
    lock: RunLock | None = None,
    *,
    updates: int = 1,
    fetch: bool = True,
) -> RunPlace:
    """Find the folder and the checkpoint, and lock the folder if there is one.

    Args:
        config: Parsed config; its `name` and `runs` are filled in.
        settings: Those of the run in it.
        verb: Begins the name of a run that is given none.
        lock: Locks the folder before it is looked into.
        updates: Consecutive steps that read the same samples, and are left out together.
        fetch: Whether the folder may be behind its remote home.

    Raises:
        UserError: The name cannot be, there is no such checkpoint, or another process writes into
            the folder.
    """
    checkpoint: Path | None = None
    launched = "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ
    if settings.resume not in ("never", "auto"):
        if is_remote(settings.resume):
            raise UserError(
                f"--resume {settings.resume} goes on within a local folder; give --runs ADDRESS"
                " --name NAME --resume auto, or start another run with --fork or --from"
            )
        checkpoint = resolve(settings.resume)
        run = checkpoint.parent.parent
        if config.name is None:
            config.runs, config.name = str(run.parent), run.name
        elif _folder(config).resolve() != run.resolve():
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
    check_run_name(config.name)
    folder, home = _folder(config), None
    if is_remote(config.runs):
        home = RemoteRun(f"{config.runs.rstrip('/')}/{config.name}")
        check_home(folder, home)
        if settings.resume == "never" and is_first_process() and home.holds_run():
            raise UserError(
                f"{home.address} already holds a run; choose another --name, or go on with that run"
                " by --resume auto"
            )
        if settings.resume == "auto" and fetch and home.holds_run():
            make_run_folder(folder)
    if lock is not None and not lock.held and folder.is_dir() and is_first_process():
        lock.take(folder)
    if home is not None and settings.resume == "auto" and fetch and folder.is_dir():
        with FileLock(folder / ".fetch"):  # several ranks of a machine may begin together
            home.pull(folder, warn if is_first_process() else _silent)
    skips = Skips.parse(settings.skip_steps).whole(updates)
    if settings.resume != "never":
        skips |= read_skips(folder)
    rewinds: tuple[Rewind, ...] = ()
    held = Skips()
    if settings.resume != "never":
        rewinds = read_rewinds(folder)
        if rewinds:
            skips |= rewinds[-1].kept
            held = rewinds[-1].held_steps
    if settings.resume == "auto":
        pending = bool(rewinds) and not rewinds[-1].done
        asked = None if pending else _rewind_asked(settings, rewinds)
        limit = rewinds[-1].to if pending else settings.rewind_to if asked is not None else None
        checkpoint = _newest_that_fits(folder, skips, limit, anew=pending or limit == 0)
        if asked is not None:
            to = 0 if checkpoint is None else read_record(checkpoint).step
            rewinds += (Rewind(to, str(skips), str(held), reason=asked),)
    elif settings.rewind_to is not None:
        raise UserError(
            f"--rewind_to {settings.rewind_to} goes back within a run: give --resume auto with it"
        )
    if settings.fork is not None and checkpoint is None:
        checkpoint = resolve(settings.fork)
    if checkpoint is not None:
        contract = read_record(checkpoint).contract
        skips |= skips_of(contract)
        held |= held_of(contract)
    return RunPlace(folder, checkpoint, skips, held, rewinds, home)


def _folder(config: Namespace) -> Path:
    """Return the local folder of a run."""
    runs = config.local_runs if is_remote(config.runs) else config.runs
    return Path(str(runs), str(config.name))


def _rewind_asked(settings: RunSettings, rewinds: Sequence[Rewind]) -> str | None:
    """Return the options that ask for a rewind; None without one, or if it has been made."""
    if settings.rewind_to is None:
        return None
    if settings.rewind_to < 0:
        raise UserError(f"--rewind_to {settings.rewind_to} must not be negative")
    asked = f"--rewind_to {settings.rewind_to}"
    if settings.skip_steps:
        asked += f" --skip_steps {settings.skip_steps}"
    if all(rewind.reason != asked for rewind in rewinds):
        return asked
    if is_first_process():
        warn(
            f"{asked} has been done before: the run goes on from its newest checkpoint; to go back"
            " once more, name the checkpoint with --resume FILE"
        )
    return None


def _newest_that_fits(folder: Path, skips: Skips, limit: int | None, *, anew: bool) -> Path | None:
    """Find the newest complete checkpoint of a run that has read nothing that is left out.

    Args:
        folder: The run.
        skips: What is left out.
        limit: Most steps that it may have made.
        anew: Whether the run may begin anew if there is none.
    """
    say = warn if is_first_process() else _silent
    passed: list[Path] = []
    beyond: list[Path] = []

    def fits(path: Path) -> bool:
        record = read_record(path)
        if limit is not None and record.step > limit:
            beyond.append(path)
            return False
        if fits_skips(record, skips):
            return True
        passed.append(path)
        return False

    found = newest_complete(folder, say, fits)
    if beyond:
        if found is None and not anew:
            raise UserError(
                f"--rewind_to {limit}: no sound checkpoint of {folder} has made at most {limit:,}"
                f" steps; the oldest is {(beyond + passed)[-1].name}. Name a later step, or 0 to"
                " begin anew"
            )
        say(
            f"the run goes back to {'its beginning' if found is None else found.name} and keeps"
            f" {', '.join(path.name for path in beyond)} in {ABANDONED}/"
        )
    if passed and found is None and not anew:
        raise UserError(
            f"no checkpoint of {folder} is left from before the first step that is to be left out"
            f" ({skips}); the oldest is {passed[-1]}. Leave out later steps, or start a new run"
            f" with --name NEW --skip_steps {skips}"
        )
    if passed:
        say(
            f"{', '.join(path.name for path in passed)} of {folder} have read steps that are to be"
            f" left out ({skips}): the run goes back before them, and keeps them in {ABANDONED}/"
        )
    return found


def _silent(message: str) -> None:
    """Leave it to the first process to warn."""


def check_place(
    place: RunPlace,
    config: Namespace,
    settings: RunSettings,
    *,
    contract: Mapping[str, Any],
    data: BaseData,
) -> bool:
    """Refuse a checkpoint that the run cannot go on from, and a folder that holds another run.

    Args:
        place: From `resolve_place`.
        config: Resolved config.
        settings: Those of the run in it.
        contract: What decides the numbers of the run.
        data: Its data.

    Returns:
        Whether the run has made all of its steps already, and its last validation.

    Raises:
        UserError: Says what differs, or that nothing is left for a fork to do.
    """
    finished = False
    if place.checkpoint is not None:
        saved = read_record(place.checkpoint)
        if not fits_skips(saved, place.skips):
            raise UserError(
                f"{place.checkpoint} stands at step {saved.step:,} and has read steps that are to"
                f" be left out ({place.skips}); go on from an older checkpoint (--resume auto takes"
                " the newest that has not)"
            )
        before, now = data_of(saved.contract), data_of(contract)
        where = str(place.checkpoint)
        other = data.why_other_batches(before, now, step=saved.step)
        if place.forks:
            check_fork(saved.contract, contract, where, other_batches=other)
            data.check_fork(before, now, step=saved.step, checkpoint=where)
        else:
            old = data.batch_tokens if other is not None else BatchSizes.of(before)
            recipe = optimizer_of(config)
            longer = same_rates(saved, contract, recipe, old, data.batch_tokens)
            if other is None and not longer and old != data.batch_tokens.planned:
                other = RATES
            check_resume(saved.contract, contract, where, longer=longer, other_batches=other)
        only_validates = saved.step == config.max_steps and saved.validation_due
        finished = saved.step >= config.max_steps and not only_validates
        if finished and place.forks:
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
    return finished


RATES = (
    "the steps before the checkpoint keep their sizes, but would have had other learning rates."
    " The batch of the steps to come may change with schedule.kind constant, and with wsd before"
    " its decay, if warm-up is given in steps or tokens and not in % of the run; with any schedule"
    " if the run still ends with the same token. Fork the checkpoint (--fork) to go on with other"
    " rates"
)


def same_rates(
    saved: CheckpointRecord,
    contract: Mapping[str, Any],
    recipe: OptimizerRecipe,
    old_batch: BatchSizes,
    batch: BatchSizes,
) -> bool:
    """Tell whether a run of another length has had the same learning rates up to the checkpoint.

    What else the optimizer moves over the run, such as Muon's momentum, must be the same as well.

    It may be shorter where its steps to come are larger.

    Args:
        saved: The checkpoint.
        contract: Of the run that goes on.
        recipe: Its optimizer.
        old_batch: Tokens of the steps of the checkpoint's run.
        batch: Tokens of the steps of the run that goes on.
    """
    before, now = saved.contract.get("max_steps"), contract["max_steps"]
    if not isinstance(before, int) or (
        before >= now and (old_batch.planned == batch.planned or saved.step > now)
    ):
        return False
    if contract.get("model.transfer.base_tokens") is not None:
        return False  # all rates follow from the length
    prefix = "model.schedule."
    schedule = Schedule(
        **{
            key.removeprefix(prefix): value
            for key, value in contract.items()
            if key.startswith(prefix)
        }
    )
    old, new = schedule.in_steps(before, old_batch), schedule.in_steps(now, batch)
    was, will = recipe.over_run(before, old_batch), recipe.over_run(now, batch)
    return all(old(step) == new(step) and was(step) == will(step) for step in range(saved.step))
