"""Replay: train up to a step again, compare with what the run has recorded, and look at the step.

The order of the data and the random numbers are functions of the step, so that the same machine
computes the same bits. Nothing is written into the run's folder.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from lit_pretrain.callbacks.checkpoints import PlainCheckpointIO
from lit_pretrain.callbacks.metrics import Metrics
from lit_pretrain.checkpoint.digests import damage
from lit_pretrain.checkpoint.layout import checkpoints, resolve, step_of
from lit_pretrain.checkpoint.remote_run import fetched
from lit_pretrain.checkpoint.resume_contract import (
    OPTIMIZER,
    differences,
    fits_skips,
    held_of,
    skips_of,
)
from lit_pretrain.checkpoint.weights import read_record
from lit_pretrain.class_path import refuse_foreign_classes
from lit_pretrain.cli.command.load_run import quiet_libraries
from lit_pretrain.cli.replay.step_look import StepLook
from lit_pretrain.cli.replay.step_report import Difference, Repetition, Report, write_report
from lit_pretrain.cli.train.ranks import is_first_process, one_voice
from lit_pretrain.cli.train.resolve import parallel_in, training_flops
from lit_pretrain.cli.train.run_place import RunPlace
from lit_pretrain.cli.train.train_cli import TrainCLI
from lit_pretrain.cli.train.trainer import RunTrainer, world_of
from lit_pretrain.errors import CollapsedError, DivergedError, UserError, warn
from lit_pretrain.files import check_output, is_remote
from lit_pretrain.parallel.strategy import make_strategy
from lit_pretrain.plain_data import dump_config, read_config
from lit_pretrain.report.rewinds import read_rewinds
from lit_pretrain.report.run_folder import (
    ABANDONED,
    CONFIG,
    METRICS,
    Provenance,
    ProvenanceFacts,
    no_run,
    provenance,
    read_metrics,
    read_provenance,
    read_skips,
)
from lit_pretrain.skips import Skips
from lit_pretrain.stage.guard import Spike
from lit_pretrain.step_size import counted

TRAINING = ("fit", "posttrain", "finetune")
COMPARED = ("train/loss", "train/grad_norm", "train/grad_norm_max")


@dataclass(frozen=True)
class Request:
    """What `lit_pretrain replay` is asked for."""

    run: str
    step: int
    report: str | None = None
    shown: int = 10
    before_rewind: bool = False
    path: str | None = None
    devices: int | None = None
    trust: bool = False


@dataclass(frozen=True)
class Attempt:
    """The attempt of a run that has computed a step."""

    config: Path
    facts: Mapping[str, Any]
    first_step: int


def replay(request: Request) -> int:
    """Run `lit_pretrain replay`.

    Returns:
        The exit code.

    Raises:
        UserError: There is no such run or step, it cannot be computed, or the losses differ from
            those that the run has recorded.
    """
    quiet_libraries()
    if is_remote(request.run):
        request = replace(request, run=str(fetched(request.run, which="all")))
    run = Path(request.run)
    if request.step < 0:
        raise UserError(f"--step={request.step}: the first step is 0")
    if request.shown < 1:
        raise UserError(f"--documents={request.shown} must be at least 1")
    if request.report is not None:
        if Path(request.report).suffix not in (".md", ".json"):
            raise UserError(
                f"--report={request.report}: its name must end in .md for Markdown or in .json"
            )
        check_output(request.report, f"--report={request.report}")
    attempt = attempt_of(run, request.step)
    left = left_branch(run, request.step) if request.before_rewind else None
    lines = read_metrics(run)
    if left is not None:  # what it recorded later is gone
        lines = [line for line in lines if line["step"] <= left.to]
    recorded = [line for line in lines if COMPARED[0] in line and line["step"] > request.step]
    # To the end of the window that holds the step: only so its own loss is compared as well.
    last = min((int(line["step"]) for line in recorded), default=request.step + 1)
    with tempfile.TemporaryDirectory() as folder:
        cli = ReplayCLI(attempt, request, last, Path(folder), left)
        look, metrics = cli.look, cli.computed
        place = cli.place
        begin = 0 if place.checkpoint is None else read_record(place.checkpoint).step
        if cli.trainer.is_global_zero:
            whence = "its first weights" if place.checkpoint is None else str(place.checkpoint)
            print(
                f"replay of step {request.step} of {run}, from {whence} (step {begin})", flush=True
            )
        train_again(cli)
    if look.found is None:
        raise UserError(
            f"training ended before step {request.step}: the config of {run} lets nothing be"
            " computed there"
        )
    if not cli.trainer.is_global_zero:
        return 0
    repetition = compare_lines(lines, metrics, begin=begin, last=last)
    report = Report(
        run=str(run), step=request.step, begin=begin, unit=cli.unit, repetition=repetition,
        found=look.found, clip_norm=cli.model.clip_norm,
    )  # fmt: skip
    for line in report.lines(request.shown):
        print(line)
    if request.report is not None:
        write_report(report, Path(request.report))
        print(f"report: {request.report}")
    if repetition.first is not None:
        raise UserError(
            f"the replay is not the run: {repetition.first}\n"
            + "\n".join(f"  {reason}" for reason in reasons(attempt, cli, begin))
        )
    return 0


def attempt_of(run: Path, step: int) -> Attempt:
    """Find the newest attempt of a run that began at or before a step, and so has computed it.

    Raises:
        UserError: There is no such run, no training has written it, or it has no such step.
    """
    if not (run / CONFIG).is_file():
        mend = " Name its folder, not a checkpoint." if step_of(run) is not None else ""
        raise no_run(run, f"it has no {CONFIG}.{mend}")
    facts = read_provenance(run)
    if facts["verb"] not in TRAINING or not (run / METRICS).is_file():
        raise UserError(
            f"{run} was written by `{facts['verb']}` and not by training, so it has no step to"
            " compute again"
        )
    # A resume that raises the length keeps the config of before under its number of steps.
    shorter = sorted(run.glob("config.*-steps.yaml"), key=lambda file: _number_in(file.name))
    found = Attempt([*shorter, run / CONFIG][0], facts, 0)
    number = 1
    while (config := run / f"config.resume-{number}.yaml").is_file():
        file = run / f"provenance.resume-{number}.json"
        number += 1
        if not file.is_file():
            continue
        later = read_provenance(run, file.name)
        whence = later.get("resumed_from")
        first = 0 if whence is None else step_of(Path(whence)) or 0
        if found.first_step <= first <= step:
            found = Attempt(config, later, first)
    max_steps = read_config(run / CONFIG).get("max_steps")
    if not isinstance(max_steps, int):
        raise UserError(f"{run / CONFIG} is damaged: it has no max_steps")
    if step >= max_steps:
        raise UserError(f"--step {step}: {run} has {max_steps:,} steps, from 0 to {max_steps - 1}")
    return found


def _number_in(name: str) -> int:
    """Read the number in the name of a file; 0 without one."""
    digits = re.search(r"\d+", name)
    return 0 if digits is None else int(digits[0])


@dataclass(frozen=True)
class LeftBranch:
    """What a run was before it went back."""

    to: int
    """Step to which it went back: up to there the branch and the run are one."""
    skips: Skips
    held: Skips


def left_branch(run: Path, step: int) -> LeftBranch:
    """Find what a run left out when it made a step from which it later went back.

    Raises:
        UserError: It has not gone back from there.
    """
    rewinds = read_rewinds(run)
    for number in reversed(range(len(rewinds))):
        rewind = rewinds[number]
        if rewind.to <= step and (rewind.spike is None or step <= rewind.spike):
            if number:
                before = rewinds[number - 1]
                return LeftBranch(rewind.to, before.kept, before.held_steps)
            skipped = read_provenance(run).get("skipped")
            return LeftBranch(rewind.to, Skips.parse(skipped), Skips())
    went = "; ".join(rewind.line for rewind in rewinds) or "it never went back"
    raise UserError(f"--before_rewind: {run} has not gone back from step {step} ({went})")


class ReplayCLI(TrainCLI):
    """A run from its own config and checkpoints, with callbacks that look and write nothing."""

    def __init__(
        self,
        attempt: Attempt,
        request: Request,
        last: int,
        folder: Path,
        left: LeftBranch | None = None,
    ) -> None:
        self.request = request
        self.left = left
        self.last = last
        self.run = Path(request.run)
        self.scratch = folder
        self.look: StepLook
        self.computed: dict[int, dict[str, float]] = {}
        """Metrics by the step that they are told at."""
        config = read_config(attempt.config)
        trainer = dict(config.get("trainer") or {})
        self.left_out = bool(trainer.get("callbacks"))
        # They may write, and are no part of what is computed.
        config["trainer"] = trainer | {"callbacks": None, "logger": None, "profiler": None}
        config |= {
            "runs": str(self.run.parent), "name": self.run.name, "resume": "auto",
            "rewind_to": None, "profile": False, "allow_oom": True, "statistics_every": 0,
            "noise_scale_every": 0,
            "evaluate_tasks": [], "evaluate_every": 0,
        }  # fmt: skip
        if left is not None:
            config["skip_steps"] = str(left.skips) or None
        if not request.trust:
            groups = ("model", "data", "trainer")
            refuse_foreign_classes({name: config[name] for name in groups}, f"the run {self.run}")
        if request.path is not None:
            if "class_path" in config["data"]:
                raise UserError(
                    f"--path={request.path}: {self.run} reads rows, whose files its config names"
                )
            config["data"]["path"] = request.path
        if request.devices is not None:
            config["trainer"] |= {"devices": request.devices, "num_nodes": 1}
            if request.devices == 1:
                config["trainer"]["strategy"] = "auto"
                config["parallel"] = None
        file = folder / CONFIG
        file.write_text(dump_config(config), encoding="utf-8")
        super().__init__(str(attempt.facts["verb"]), ["--config", str(file)])

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        return "nats per token" if self.model.objective.bits_per_byte else "of the objective"

    def find_place(self, *, updates: int) -> RunPlace:
        """Find the newest sound checkpoint from before the step; lock nothing.

        Raises:
            UserError: The run begins after the step.
        """
        skips = Skips.parse(self.settings.skip_steps).whole(updates)
        held, rewinds = Skips(), read_rewinds(self.run)
        if self.left is not None:
            held = self.left.held
        else:
            skips |= read_skips(self.run)
            if rewinds:
                skips |= rewinds[-1].kept
                held = rewinds[-1].held_steps
        step, found = self.request.step, None
        for path in sorted(self._checkpoints(), key=lambda path: step_of(path) or 0, reverse=True):
            if (step_of(path) or 0) > step:
                continue
            if (wrong := damage(path)) is None:
                if fits_skips(read_record(path), skips):
                    found = path
                    break
            elif is_first_process():
                warn(f"checkpoint {path} is torn or damaged: {wrong}; it is passed over")
        if found is None and self.settings.fork is not None:
            found = resolve(self.settings.fork)
            begin = read_record(found).step
            if begin > step:
                raise UserError(
                    f"--step {step}: {self.run} begins with step {begin}, as a fork of {found};"
                    " replay the run that it comes from"
                )
        if found is not None:
            contract = read_record(found).contract
            skips |= skips_of(contract)
            held |= held_of(contract)
        return RunPlace(self.run, found, skips, held)

    def _checkpoints(self) -> list[Path]:
        """List the checkpoints of the run, and those set aside if it left the branch."""
        aside = self.run / ABANDONED
        if self.left is None or not aside.is_dir():
            return checkpoints(self.run)
        return checkpoints(self.run) + [p for p in aside.iterdir() if step_of(p) is not None]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that looks at the step and writes nothing."""
        values = self.config_init["trainer"]
        options = dict(values.as_dict() if isinstance(values, Namespace) else values)
        self.look = StepLook(
            self.request.step, last=self.last, data=self.datamodule,
            tokens=max(self.request.shown, 100),
        )  # fmt: skip
        metrics = Metrics(
            every=self.settings.log_every,
            sources=self.datamodule.sources,
            batch=self.data.batch_tokens,
            flops_per_token=training_flops(self.config, seq_len=self.data.seq_len),
            peak=None,
            sinks=[self._keep],
        )
        plugins = options["plugins"]
        given = [] if plugins is None else plugins if isinstance(plugins, list) else [plugins]
        return RunTrainer(
            **options
            | {
                "max_steps": self.config.max_steps,
                "max_epochs": -1,
                "max_time": None,
                "val_check_interval": None,
                "check_val_every_n_epoch": None,
                "limit_val_batches": 0,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "default_root_dir": str(self.scratch),
                "logger": False,
                "profiler": None,
                "strategy": make_strategy(
                    self.config.trainer.strategy,
                    world_of(self.config.trainer),
                    parallel=parallel_in(self.config),
                    sharded_checkpoints=self.config.sharded_checkpoints,
                ),
                "callbacks": [metrics, self.look],
                "plugins": [*given, PlainCheckpointIO()],
            }
        )

    def _keep(self, step: int, values: dict[str, float]) -> None:
        self.computed[step] = values


def train_again(cli: ReplayCLI) -> None:
    """Train up to the end of the step's window, or up to the step if it ends the run.

    Raises:
        UserError: The run cannot be computed, or ends before the step.
    """
    trainer, stage, data, checkpoint = cli.trainer, cli.model, cli.datamodule, cli.place.checkpoint
    data.setup("fit")
    if checkpoint is not None and cli.place.forks:
        saved = read_record(checkpoint).contract
        changed = differences(saved, cli.contract)
        stage.new_settings = any(line.startswith(OPTIMIZER) for line in changed)
    with one_voice(trainer):
        try:
            trainer.fit(
                stage,
                datamodule=data,
                ckpt_path=None if checkpoint is None else str(checkpoint),
                weights_only=True,
            )
        except (DivergedError, CollapsedError, Spike) as error:
            if cli.look.found is None:
                raise UserError(
                    f"the replay ends before step {cli.request.step}: {error}"
                ) from error


def compare_lines(
    lines: Sequence[Mapping[str, float]],
    computed: Mapping[int, Mapping[str, float]],
    *,
    begin: int,
    last: int,
) -> Repetition:
    """Compare the losses that a run has recorded with those that were computed again.

    Args:
        lines: Of metrics.jsonl.
        computed: Metrics of a window, by the step at its end.
        begin: Step at which the replay began.
        last: Step at which it ended.
    """
    found = []
    for line in lines:
        step = int(line["step"])
        if not begin < step <= last or COMPARED[0] not in line or step not in computed:
            continue
        names = [*COMPARED, *(name for name in line if name.startswith("train_loss/"))]
        # A NaN equals itself here.
        differing = [
            Difference(step, name, line[name], computed[step].get(name))
            for name in names
            if name in line and repr(line[name]) != repr(computed[step].get(name))
        ]
        found.append((step, differing))
    return Repetition(
        steps=[step for step, _ in found],
        differences=[difference for _, differing in found for difference in differing],
    )


def reasons(attempt: Attempt, cli: ReplayCLI, begin: int) -> list[str]:
    """List what may be the reason for other bits: whatever differs, or cannot be known to be equal.

    Args:
        attempt: Of the run, with what it has recorded of its machine.
        cli: The replay.
        begin: Step at which it began.
    """
    recorded = attempt.facts
    now: Provenance = provenance(ProvenanceFacts(threads=torch.get_num_threads()))
    found = []
    versions = recorded.get("versions") or {}
    for name, version in now["versions"].items():
        if name in versions and versions[name] != version:
            found.append(f"{name} was {versions[name]}, and is {version}")
    for name, what in (
        ("revision", "the revision of the code"), ("machine", "the machine"),
        ("threads", "the number of threads"),
    ):  # fmt: skip
        before, here = recorded.get(name), dict(now).get(name)
        if name == "threads" and before is None:
            found.append("how many threads the run had is not recorded (OMP_NUM_THREADS)")
        elif before is not None and here is not None and before != here:
            found.append(f"{what} was {before}, and is {here}")
    if cli.request.devices is not None:
        found.append(f"the replay has {counted(cli.request.devices, 'devices')} (--devices)")
    if begin < attempt.first_step:
        found.append(
            f"steps {begin} to {attempt.first_step - 1} were computed by an earlier attempt, whose"
            " threads, devices or micro-batches may have been others"
        )
    if cli.left_out:
        found.append("the callbacks of the run's config are left out")
    if cli.model.net.is_compiled:
        found.append("blocks are compiled, and another compiler or processor makes other code")
    elif cli.model.compile_mode == "auto":
        found.append(
            "blocks are not compiled here, and may have been before (model.compile is auto)"
        )
    if cli.trainer.strategy.root_device.type != "cpu":
        found.append("some operations of a GPU add in no fixed order")
    return found or ["nothing that the run has recorded differs from this machine"]
