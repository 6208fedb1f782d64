"""The Trainer of a run: Lightning's, with the callbacks of the run and the options that it owns.

Options that a run decides by itself are refused with what to set instead (`OWNED`); the others are
Lightning's own and reach it as they are.
"""

import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.callbacks.checkpoints import Checkpoints, PlainCheckpointIO
from lit_pretrain.callbacks.evaluations import AnswersShown, Evaluations, TextSamples
from lit_pretrain.callbacks.graceful_stop import GracefulStop
from lit_pretrain.callbacks.layer_statistics import LayerStatistics
from lit_pretrain.callbacks.metrics import Metrics
from lit_pretrain.callbacks.noise_scale import NoiseScale
from lit_pretrain.callbacks.progress import ProgressLine
from lit_pretrain.callbacks.run_board import RunBoard
from lit_pretrain.callbacks.step_trace import StepTrace
from lit_pretrain.callbacks.time_ledger import StepEnd, TimeLedger
from lit_pretrain.callbacks.uploads import Uploads
from lit_pretrain.callbacks.watchdog import Watchdog
from lit_pretrain.checkpoint.layout import step_of
from lit_pretrain.checkpoint.remote_run import RemoteRun
from lit_pretrain.checkpoint.resume_contract import flatten
from lit_pretrain.checkpoint.weights import read_record
from lit_pretrain.cli.train.resolve import parallel_in
from lit_pretrain.cli.train.run_place import RunPlace, RunSettings
from lit_pretrain.errors import UserError, cause_of
from lit_pretrain.evaluate.harness import EvaluationRequest
from lit_pretrain.parallel.strategy import STRATEGIES, make_strategy
from lit_pretrain.plain_data import read_json_file
from lit_pretrain.report.run_folder import LOGGERS


class RunCallbacks:
    """The callbacks of one run; what they take time for is no time of training.

    Args:
        folder: Of the run.
        settings: How often each looks around.
        sources: Names of the data's sources.
        batch: Inputs of the optimizer steps over all ranks.
        flops_per_token: Of training.
        contract: What a checkpoint carries.
        back_to: Step to which the run goes back now; None: it does not.
        home: Where the run is uploaded to; None: nowhere.
        seconds: Wall time after which the run saves itself and stops; None: never.

    Raises:
        UserError: Evaluations are asked for, and no task is named.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        *,
        sources: Sequence[str],
        batch: BatchSizes,
        flops_per_token: float,
        contract: Mapping[str, Any],
        back_to: int | None,
        home: RemoteRun | None,
        seconds: float | None,
    ) -> None:
        self.progress = ProgressLine(batch=batch)
        self.uploads = None if home is None else Uploads(folder, home)
        self.ledger = TimeLedger(folder)
        self.metrics = Metrics(
            every=settings.log_every,
            sources=sources,
            batch=batch,
            flops_per_token=flops_per_token,
            peak=None,
            sinks=[self.progress],
        )
        self.statistics = LayerStatistics(settings.statistics_every, sinks=self.metrics.sinks)
        self.noise_scale = NoiseScale(settings.noise_scale_every, sinks=self.metrics.sinks)
        self.checkpoints = Checkpoints(
            folder,
            every=settings.checkpoint_every,
            keep=settings.keep_checkpoints,
            contract=contract,
            asynchronous=settings.async_checkpoints,
            back_to=back_to,
            on_saved=self._saved,
            on_written=self._written,
            on_gone_back=None if self.uploads is None else self.uploads.go_back,
        )
        self.samples = TextSamples(
            folder,
            every=settings.sample_every,
            prompts=settings.sample_prompts,
            tokens=settings.sample_tokens,
            on_done=self.pause,
        )
        self.stop = GracefulStop(self.checkpoints, seconds=seconds)
        self.watchdog = Watchdog(folder, settings.hang_timeout, self.stop)
        self.answers_shown = AnswersShown(settings.log_every)
        self.evaluations = self._evaluations(folder, settings)

    def in_order(self) -> list[Callback]:
        """List all of them, in the order in which they are called."""
        return [
            self.ledger, self.watchdog, self.metrics, self.statistics, self.noise_scale,
            self.progress, self.samples, self.answers_shown, *self.evaluations,
            self.checkpoints, self.stop, StepEnd(self.ledger),
            *([] if self.uploads is None else [self.uploads]),
        ]  # fmt: skip

    def pause(self, seconds: float) -> None:
        """Take time that has just gone by out of training."""
        self.metrics.pause(seconds)
        self.ledger.move("other", seconds)

    def _saved(self, seconds: float) -> None:
        self.metrics.pause(seconds)
        self.ledger.move("saving", seconds)
        if self.ledger.attempts:  # kept by rank 0
            assert self.checkpoints.latest is not None
            self.ledger.remember(step_of(self.checkpoints.latest) or 0)

    def _written(self, step: int) -> None:
        if self.ledger.attempts:
            self.ledger.write(step)
            if self.uploads is not None:
                self.uploads.start()

    def _evaluations(self, folder: Path, settings: RunSettings) -> list[Callback]:
        if not settings.evaluate_tasks:
            if settings.evaluate_every:
                raise UserError(
                    f"evaluate_every={settings.evaluate_every}, but evaluate_tasks names no task"
                )
            return []
        request = EvaluationRequest(
            settings.evaluate_tasks,
            include=settings.evaluate_include,
            limit=settings.evaluate_limit,
        )
        return [
            Evaluations(
                folder,
                every=settings.evaluate_every,
                request=request,
                sinks=self.metrics.sinks,
                on_done=self.pause,
                on_batch=self.watchdog.beat,
            )
        ]


# Ours to decide, because a stage counts optimizer steps and normalises and clips by itself: what is
# accepted besides None, and what to do instead. tests/cli/train/test_trainer.py knows of every
# other option.
OWNED = {
    "fast_dev_run": (False, "set --max_steps 2 and a --name to throw away"),
    "min_epochs": (
        None,
        "a run has exactly the length of --max_steps, --max_epochs, --max_tokens or --max_flops",
    ),
    "min_steps": (
        None,
        "a run has exactly the length of --max_steps, --max_epochs, --max_tokens or --max_flops",
    ),
    "limit_test_batches": (None, "training does not test; `lit_pretrain test --run RUN` does"),
    "limit_predict_batches": (None, "training does not predict"),
    "overfit_batches": (0.0, "to overfit, prepare a small dataset and read it often (--max_steps)"),
    "num_sanity_val_steps": (
        0,
        "data and settings are checked before the first step; set --validate_every",
    ),
    "enable_checkpointing": (
        True,
        "a run keeps at least its last step; set --checkpoint_every 0 for no other",
    ),
    "enable_model_summary": (False, "the plan before a run says its parameters"),
    "gradient_clip_algorithm": (None, "gradients are clipped by their norm; set model.clip_norm"),
    "inference_mode": (True, "validation within training computes no gradients anyway"),
    "use_distributed_sampler": (True, "each rank reads its share of every step by itself"),
    "barebones": (
        False,
        (
            "set --log_every, --checkpoint_every 0 and --trainer.logger false for less beside the"
            " steps"
        ),
    ),
    "sync_batchnorm": (False, "no network here has a batch norm"),
    "reload_dataloaders_every_n_epochs": (0, "the data is one stream without epochs of the loader"),
    "enable_autolog_hparams": (
        True,
        "hyperparameters are logged once, with the final figures; set --trainer.logger false",
    ),
    "model_registry": (None, "see `lit_pretrain export --help`"),
    "accumulate_grad_batches": (
        1,
        "accumulation is derived from data.global_batch_tokens and data.micro_batch_size",
    ),
    "gradient_clip_val": (None, "set model.clip_norm"),
    "val_check_interval": (None, "set --validate_every (optimizer steps)"),
    "check_val_every_n_epoch": (1, "set --validate_every (optimizer steps)"),
    "max_epochs": (None, "set --max_steps, --max_epochs, --max_tokens or --max_flops"),
    "max_steps": (-1, "set --max_steps, --max_tokens or --max_flops"),
    "limit_train_batches": (None, "set --max_steps, --max_tokens or --max_flops"),
    "limit_val_batches": (None, "set data.val_tokens, and --validate_every"),
    "log_every_n_steps": (None, "set --log_every"),
    "enable_progress_bar": (None, "progress is one line, live on a terminal and plain elsewhere"),
    "default_root_dir": (None, "set --runs (a folder, or an address) and --name"),
}
ProfilerName = Literal["simple", "advanced", "pytorch"]
PROFILERS: dict[str, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
LoggerName = Literal["wandb", "mlflow"]
OneLogger = LoggerName | Logger


class RunTrainer(Trainer):
    """Lightning's Trainer, with what a run makes of its options `logger` and `profiler`.

    Args:
        logger: Where metrics go beside TensorBoard: wandb, mlflow, the class path of a logger, or a
            list of these. False: nowhere, not to TensorBoard either.
        profiler: pytorch is --profile; simple and advanced write Lightning's reports into the run's
            folder; or the class path of a profiler.
        options: Lightning's own.
    """

    def __init__(
        self,
        *,
        logger: OneLogger | list[OneLogger] | bool | None = None,
        profiler: ProfilerName | Profiler | None = None,
        **options: Any,
    ) -> None:
        # Lightning knows nothing of the names of loggers; `make_trainer` has replaced them.
        super().__init__(logger=logger, profiler=profiler, **options)  # type: ignore[arg-type]


def check_owned(trainer: Namespace) -> None:
    """Refuse what a config says of the Trainer that is not its to say.

    Args:
        trainer: The Trainer's part of a parsed config.

    Raises:
        UserError: Names the setting and what to set instead.
    """
    for name, (default, instead) in OWNED.items():
        if trainer[name] not in (default, None):
            raise UserError(f"trainer.{name}={trainer[name]!r} is not for you to set: {instead}")
    if isinstance(trainer.strategy, str) and trainer.strategy not in STRATEGIES:
        names = ", ".join(STRATEGIES)
        raise UserError(
            f"trainer.strategy={trainer.strategy!r} is not supported: set one of {names}"
        )


def check_evaluation(verb: str, trainer: Namespace) -> None:
    """Refuse options of the Trainer that an evaluation does not read.

    Raises:
        UserError: Names the first that is not left as it was.
    """
    for name, parameter in inspect.signature(Trainer).parameters.items():
        if name not in ("accelerator", "precision") and trainer[name] != parameter.default:
            raise UserError(
                f"trainer.{name}={trainer[name]!r} has no effect on {verb}, which runs on one"
                " device: of the Trainer set accelerator and precision only"
            )


def time_limit(max_time: Any) -> float | None:
    """Give the seconds of wall time after which a run stops by itself; None: it does not.

    Args:
        max_time: The Trainer's option. Lightning would end the run as if it were done.

    Raises:
        UserError: It is no time, or not positive.
    """
    try:
        seconds = Timer(max_time).time_remaining()
    except (MisconfigurationException, TypeError) as error:
        form = "write DD:HH:MM:SS, such as 00:01:30:00, or {minutes: 90}"
        raise UserError(f"trainer.max_time={max_time!r} is no time: {form}") from error
    if seconds is not None and seconds <= 0:
        raise UserError(
            f"trainer.max_time={max_time!r} must be positive; leave it out for no limit"
        )
    return seconds


class LastValidation(Callback):
    """Resumes a run that stopped within its last validation.

    Lightning does nothing for a run that stands at its last step, so this one gets a step more
    until the validation has begun.
    """

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        """Take the step away again."""
        trainer.fit_loop.epoch_loop.max_steps = trainer.global_step


def world_of(trainer: Namespace) -> int:
    """Count the devices of a run over all of its machines, before there is a Trainer."""
    devices = trainer.devices
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        local = len(devices)
    elif isinstance(devices, int) and devices > 0:
        local = devices
    else:
        local = (
            torch.cuda.device_count()
            if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
            else 1
        )
    return local * int(trainer.num_nodes)


def make_trainer(
    config: Namespace,
    instantiated: Mapping[str, Any],
    place: RunPlace,
    callbacks: Sequence[Callback],
    *,
    checkpoint_io: PlainCheckpointIO,
    pause: Callable[[float], None],
) -> Trainer:
    """Make the Trainer of a run.

    Args:
        config: Resolved config.
        instantiated: The Trainer's part of it, with its objects made.
        place: Where the run lives.
        callbacks: Ours; those of the config come after them.
        checkpoint_io: What reads and writes checkpoints.
        pause: Takes seconds that are no time of training.

    Raises:
        UserError: Lightning refuses the settings, or a package is missing.
    """
    every, callbacks = config.validate_every or config.max_steps, list(callbacks)
    first_step = read_record(place.checkpoint).step if place.checkpoint else 0
    only_validates = first_step == config.max_steps
    if only_validates:
        callbacks.insert(0, LastValidation())
        every = config.max_steps
    options = dict(instantiated) | {
        "max_steps": config.max_steps + only_validates,
        "max_epochs": -1,
        "max_time": None,
        "val_check_interval": every,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(place.folder),
        "strategy": make_strategy(
            config.trainer.strategy,
            world_of(config.trainer),
            parallel=parallel_in(config),
            sharded_checkpoints=config.sharded_checkpoints,
        ),
    }
    options["logger"] = _loggers(
        options["logger"], place, first_step=first_step if place.checkpoint else None
    )
    if config.profile and options["profiler"] is not None:
        raise UserError("profile is trainer.profiler=pytorch: leave one of the two out")
    if config.profile or options["profiler"] == "pytorch":
        options["profiler"] = StepTrace(
            place.folder / "profile", first_step, config.max_steps - first_step, on_done=pause
        )
    elif isinstance(options["profiler"], str):
        # What Lightning logs, nobody sees here.
        options["profiler"] = PROFILERS[options["profiler"]](
            dirpath=str(place.folder), filename="profile"
        )
    options["callbacks"] = [*callbacks, *list(options["callbacks"] or [])]
    options["plugins"] = [*_listed(options["plugins"]), checkpoint_io]
    try:
        return RunTrainer(**options)
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        RuntimeError,
        ModuleNotFoundError,
    ) as error:
        raise UserError(f"the Trainer refuses its settings: {error}") from error


NEEDED = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""Packages that each named logger needs; mlflow keeps its runs in a database."""


def _loggers(given: Any, place: RunPlace, *, first_step: int | None) -> list[Logger]:
    """Make the loggers of a run: TensorBoard's, and those that are given.

    A run that goes on is the same run there: what they call it is kept in the run's folder.

    Args:
        given: `trainer.logger`: False for none at all.
        place: Where the run lives.
        first_step: The step from which it goes on; None for a new run.

    Raises:
        UserError: A package is missing.
    """
    if given is False:
        return []
    kept = place.folder / LOGGERS
    ids: dict[str, str] = read_json_file(kept) if place.resumes and kept.is_file() else {}
    loggers: list[Logger] = [RunBoard(place.folder, first_step=first_step)]
    for logger in [] if given in (None, True) else _listed(given):
        if not isinstance(logger, str):
            loggers.append(logger)
            continue
        missing = [name for name in NEEDED[logger] if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"trainer.logger={logger} needs {' and '.join(missing)}: pip install"
                f" 'lit_pretrain[{logger}]'"
            )
        known = ids.get(logger)
        if logger == "wandb":
            project = os.environ.get("WANDB_PROJECT", "lit_pretrain")
            made: Logger = WandbLogger(
                name=place.folder.name, save_dir=str(place.folder), project=project, id=known,
                resume="must" if known and os.environ.get("WANDB_MODE") != "offline" else None,
            )  # fmt: skip
        else:
            database = f"sqlite:///{place.folder.resolve().parent / 'mlflow.db'}"
            made = MLFlowLogger(
                os.environ.get("MLFLOW_EXPERIMENT_NAME", "lit_pretrain"), run_id=known,
                run_name=place.folder.name,
                tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", database),
            )  # fmt: skip
        loggers.append(made)
    return loggers


def begin_loggers(loggers: Sequence[Logger], config: Mapping[str, Any]) -> dict[str, str]:
    """Let the loggers beside TensorBoard's begin the run.

    Args:
        loggers: All loggers of the run.
        config: Its resolved config, which they take as hyper-parameters.

    Returns:
        What Weights & Biases and MLflow call the run, for the run that goes on with it.

    Raises:
        UserError: One cannot begin.
    """
    ids = {}
    for logger in loggers:
        if isinstance(logger, RunBoard):
            continue
        try:
            logger.log_hyperparams(_accepted(logger, flatten(config)))
            if isinstance(logger, WandbLogger):
                ids["wandb"] = str(logger.version)
            elif isinstance(logger, MLFlowLogger):
                ids["mlflow"] = str(logger.run_id)
        except Exception as error:  # each logger's client has its own exceptions
            raise UserError(
                f"trainer.logger: {type(logger).__name__} cannot begin: {cause_of(error)}"
            ) from error
    return ids


def log_to(logger: Logger, step: int, values: dict[str, float]) -> None:
    """Write metrics to a Lightning logger, as a sink of `Metrics`."""
    logger.log_metrics(_accepted(logger, values), step)


def _accepted(logger: Logger, values: dict[str, Any]) -> dict[str, Any]:
    """Return values under names that the logger takes; MLflow refuses most symbols."""
    if not isinstance(logger, MLFlowLogger):
        return values
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
