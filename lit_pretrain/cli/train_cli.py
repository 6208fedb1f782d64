"""TrainCLI: from arguments to a resolved config, a Trainer, a stage and its data."""

import math
import os
import time
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from lit_pretrain.adapter import LoRA
from lit_pretrain.callbacks.answers_shown import AnswersShown
from lit_pretrain.callbacks.checkpoint_io import PlainCheckpointIO
from lit_pretrain.callbacks.checkpoints import Checkpoints
from lit_pretrain.callbacks.evaluations import Evaluations
from lit_pretrain.callbacks.graceful_stop import GracefulStop
from lit_pretrain.callbacks.metrics import Metrics
from lit_pretrain.callbacks.progress import ProgressLine
from lit_pretrain.callbacks.samples import Samples
from lit_pretrain.checkpoint.contract import KEY, check_fork, check_resume, contract_of, data_of
from lit_pretrain.checkpoint.find import newest_complete, resolve
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.checkpoint.parent import Parent, find_parent
from lit_pretrain.checkpoint.weights import read_metadata
from lit_pretrain.cli.adapter_cost import adapter_cost
from lit_pretrain.cli.data_choice import Data, build, names_class, settings_of
from lit_pretrain.cli.fit_plan import check_memory, layout_of
from lit_pretrain.cli.messages import warn
from lit_pretrain.cli.parent import check_parent, tokenizer_folder
from lit_pretrain.cli.parser import Suggesting, parser_options
from lit_pretrain.cli.precision import check_precision, default_precision
from lit_pretrain.cli.ranks import LAUNCHED_NAME, is_first_process
from lit_pretrain.cli.raw import asks_only, raw_parent
from lit_pretrain.cli.settings import RunSettings
from lit_pretrain.data.datamodule import TextData
from lit_pretrain.data.mixture import check_past
from lit_pretrain.data.post_training import PostTrainingData
from lit_pretrain.errors import UserError
from lit_pretrain.evaluate.harness import Request
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.report.folder import TENSORBOARD, check_unused
from lit_pretrain.scaling.flops import flops_per_token
from lit_pretrain.scaling.memory import Layout
from lit_pretrain.stage.sharded_strategy import ShardedStrategy
from lit_pretrain.stage.stage import Stage

PRESETS = Path(__file__).parent / "presets"
VOCAB_MULTIPLE = 64
"""A vocabulary is padded to a multiple of it: matrix kernels are fastest on such sizes."""
NEEDS_PARENT = ("posttrain", "finetune")

# Ours to decide, because a stage counts optimizer steps and normalises and clips by itself.
OWNED = {
    "accumulate_grad_batches": (1, "accumulation is derived from data.global_batch_tokens and data.micro_batch_size"),
    "gradient_clip_val": (None, "set model.clip_norm"),
    "val_check_interval": (None, "set --validate_every (optimizer steps)"),
    "check_val_every_n_epoch": (1, "set --validate_every (optimizer steps)"),
    "max_epochs": (None, "set --max_steps, --max_epochs, --max_tokens or --max_flops"),
    "max_steps": (-1, "set --max_steps, --max_tokens or --max_flops"),
    "limit_train_batches": (None, "set --max_steps, --max_tokens or --max_flops"),
    "limit_val_batches": (None, "set data.val_tokens, and --validate_every"),
    "log_every_n_steps": (None, "set --log_every"),
    "enable_progress_bar": (None, "progress is one line, live on a terminal and plain elsewhere"),
    "default_root_dir": (None, "set --runs and --name"),
}


class TrainParser(Suggesting, LightningArgumentParser):  # type: ignore[misc]  # as VerbParser
    """LightningCLI's parser with hints for misspelt names."""


class TrainCLI(LightningCLI):
    """Parses, resolves and instantiates; running is left to `train`."""

    def __init__(self, verb: str, args: ArgsType) -> None:
        self.verb = verb
        self.run_folder: Path
        self.metrics: Metrics
        self.checkpoints: Checkpoints
        self.checkpoint: Optional[Path] = None
        self.parent: Optional[Parent] = None
        self.settings: RunSettings
        self.layout: Layout
        self.data: Data
        """The data as the config says it, before anything else is made."""
        assert isinstance(args, list)
        chosen = names_class(args)
        super().__init__(
            Stage,
            LightningDataModule if chosen else TextData,
            subclass_mode_data=chosen,
            args=args,
            run=False,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=False,
            load_from_checkpoint_support=False,  # checkpoints hold no hyper-parameters that could overrule the config
            parser_class=TrainParser,
            parser_kwargs=parser_options(verb),
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with the shape of the parent's network as the default."""
        assert isinstance(args, list)
        parent = raw_parent(args)
        if parent is None and self.verb in NEEDS_PARENT and not asks_only(args):
            raise UserError(
                f"{self.verb} needs a parent: give --from RUN, the folder of a finished run or one of its checkpoints, "
                "or --from FOLDER, a Hugging Face model"
            )
        if parent is not None:
            self.parent = find_parent(parent)
            parser.set_defaults({f"model.net.{field}": value for field, value in self.parent.shape.items()})
        preset = PRESETS / f"{self.verb}.yaml"
        self.config = parser.parse_args([*(["--config", str(preset)] if preset.exists() else []), *args])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the run as a whole."""
        parser.add_class_arguments(RunSettings, None)
        text = "Parent whose weights the run starts from: a run folder, one of its checkpoints, or a Hugging Face folder."
        parser.add_argument("--from", type=Optional[str], default=None, help=text)
        parser.set_defaults({"model.net.vocab_size": None, "trainer.precision": None})

    # ------------------------------------------------------------------ resolve

    def before_instantiate_classes(self) -> None:
        """Fill in what depends on the data, the machine and the parent, so that the saved config says it all."""
        config = self.config
        self.settings = RunSettings(**{field: config[field] for field in RunSettings.__dataclass_fields__})
        for name, (default, instead) in OWNED.items():
            if config.trainer[name] not in (default, None):
                raise UserError(f"trainer.{name}={config.trainer[name]!r} is not for you to set: {instead}")
        self.take_tokenizer()
        self.data = data = build(config.data)
        if config.model.net.vocab_size is None:
            config.model.net.vocab_size = math.ceil(data.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        if config.trainer.precision is None:
            config.trainer.precision = default_precision(config.trainer.accelerator)
        check_precision(config.trainer.precision)
        if self.parent is not None:
            config.model.init_from = str(self.parent.path)
            mend = None if isinstance(data, TextData) else "Leave data.tokenizer out to take the parent's."
            check_parent(self.parent, data, accept=self.settings.accept, mend=mend)
        if config.model.adapter is not None and config.sharded_checkpoints:
            raise UserError("sharded_checkpoints is for large checkpoints; that of model.adapter is small: set sharded_checkpoints: false")
        self._resolve_length(config)
        self.contract = contract_of(
            self.plain_config(), manifest_hash=data.manifest_hash, tokenizer_hash=data.tokenizer_hash, template_hash=data.template_hash
        )
        data.check_length(config.max_steps)
        self.layout = layout_of(config, data, _world(config.trainer), added=self._adapter_parameters(config))
        check_memory(
            net_of(config), self.layout, ranks_here=self.layout.devices // int(config.trainer.num_nodes), allow=self.settings.allow_oom
        )
        self._resolve_folder()

    def take_tokenizer(self) -> None:
        """Let rows be encoded by the parent's tokenizer where the config names none."""
        settings = settings_of(self.config.data)
        if "tokenizer" in settings and settings["tokenizer"] is None and self.parent is not None:
            settings["tokenizer"] = str(tokenizer_folder(self.parent))

    def _resolve_length(self, config: Namespace) -> None:
        given = {name: config[name] for name in ("max_steps", "max_epochs", "max_tokens", "max_flops") if config[name] is not None}
        if len(given) != 1:
            raise UserError(f"give exactly one of max_steps, max_epochs, max_tokens and max_flops; found {given or 'none'}")
        (name, value), tokens = next(iter(given.items())), self.data.tokens_per_step
        if not 0 < value < math.inf:
            raise UserError(f"{name}={value} must be positive and finite")
        if name == "max_flops":
            value = value / self._flops_per_token(config)
        if name == "max_epochs":
            config.max_steps = self.data.steps_of(value)
        else:
            config.max_steps = int(value) if name == "max_steps" else math.ceil(value / tokens)
        config.max_epochs = config.max_tokens = config.max_flops = None

    @staticmethod
    def _adapter_parameters(config: Namespace) -> Optional[int]:
        adapter = adapter_of(config)
        return None if adapter is None else adapter_cost(net_of(config), adapter).trained

    def _flops_per_token(self, config: Namespace) -> float:
        return flops_per_token(net_of(config), self.data.seq_len, adapter_parameters=self._adapter_parameters(config)).training

    def plain_config(self) -> dict[str, Any]:
        """The resolved config as nested plain values, as it is saved."""
        loaded: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return loaded

    def _resolve_folder(self) -> None:
        config, settings = self.config, self.settings
        launched = "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ
        if settings.resume not in ("never", "auto"):
            self.checkpoint = resolve(settings.resume)
            run = self.checkpoint.parent.parent
            if config.name is None:
                config.runs, config.name = str(run.parent), run.name
            elif (Path(config.runs) / config.name).resolve() != run.resolve():
                raise UserError(
                    f"--resume {settings.resume} goes on with the run {run}, but --name is {config.name!r}; leave --name out, or start "
                    "another run from that checkpoint with --fork or --from"
                )
        if config.name is None and launched:
            config.name = os.environ.get(LAUNCHED_NAME)
        if config.name is None:
            if launched:
                raise UserError("several processes need one run folder: give --name")
            config.name = f"{self.verb}-{time.strftime('%Y%m%d-%H%M%S')}"
        if Path(config.name).name != config.name:
            raise UserError(f"--name {config.name!r} must be a plain name without {os.sep!r}; --runs says in which folder runs lie")
        self.run_folder = Path(config.runs) / config.name
        if settings.resume == "auto":
            self.checkpoint = newest_complete(self.run_folder, warn)
        if settings.fork is not None and self.checkpoint is None:
            self.checkpoint = resolve(settings.fork)
        if self.checkpoint is not None:
            saved = read_metadata(self.checkpoint).get(KEY, {})
            if "contract" not in saved:
                raise UserError(f"{self.checkpoint} was not written by lit_pretrain: it carries no contract")
            forks = settings.fork is not None and self.checkpoint.parent.parent != self.run_folder
            (check_fork if forks else check_resume)(saved["contract"], self.contract, str(self.checkpoint))
            if forks and isinstance(self.data, TextData):
                before, now = data_of(saved["contract"]), data_of(self.contract)
                check_past(self.data.manifest, before, now, step=saved["step"], where=str(self.checkpoint))
            if saved["step"] >= config.max_steps:
                raise UserError(
                    f"{self.checkpoint} stands at step {saved['step']} and the run ends at {config.max_steps}: nothing is left to do"
                )
        if is_first_process():
            if settings.resume == "never":
                check_unused(self.run_folder)
            # Processes that Lightning launches parse the same command line and must not choose a name of their own.
            os.environ[LAUNCHED_NAME] = config.name

    # ------------------------------------------------------------------ instantiate

    def instantiate_classes(self) -> None:
        """Make everything; rows that were read to resolve the config are not read again."""
        super().instantiate_classes()
        if isinstance(self.data, PostTrainingData):
            self.datamodule.share(self.data)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with our callbacks, logger and checkpoint route."""
        config, settings = self.config, self.settings
        tokens = self.data.tokens_per_step
        self.metrics = Metrics(
            every=settings.log_every,
            sources=self.datamodule.sources,
            tokens_per_step=tokens,
            flops_per_token=self._flops_per_token(config),
            peak=None,
            sinks=[],
        )
        self.checkpoints = Checkpoints(
            self.run_folder,
            every=settings.checkpoint_every,
            keep=settings.keep_checkpoints,
            contract=self.contract,
            on_saved=self.metrics.pause,
        )
        progress = ProgressLine()
        samples = Samples(
            self.run_folder,
            every=settings.sample_every,
            prompts=settings.sample_prompts,
            tokens=settings.sample_tokens,
            on_done=self.metrics.pause,
        )
        self.answers_shown = AnswersShown(settings.log_every)
        own: list[Callback] = [
            self.metrics, progress, samples, self.answers_shown, *self._evaluations(), GracefulStop(self.checkpoints), self.checkpoints,
        ]  # fmt: skip
        self.samples = samples
        self.metrics.sinks.append(progress)
        every = settings.validate_every
        options = dict(config_values(self.config_init["trainer"])) | {
            "max_steps": config.max_steps,
            "max_epochs": -1,
            "val_check_interval": every if every else config.max_steps,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(self.run_folder),
            "strategy": self._strategy(config.trainer),
        }
        if options["logger"] in (None, True):
            options["logger"] = TensorBoardLogger(
                str(self.run_folder), name="", version=TENSORBOARD, default_hp_metric=False,
                purge_step=read_metadata(self.checkpoint)[KEY]["step"] + 1 if self.checkpoint else None,
            )  # fmt: skip
        options["callbacks"] = own + list(options["callbacks"] or [])
        options["plugins"] = [*_listed(options["plugins"]), PlainCheckpointIO()]
        try:
            return Trainer(**options)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"the Trainer refuses its settings: {error}") from error

    def _evaluations(self) -> list[Callback]:
        settings = self.settings
        if not settings.evaluate_tasks:
            if settings.evaluate_every:
                raise UserError(f"evaluate_every={settings.evaluate_every}, but evaluate_tasks names no task")
            return []
        request = Request(settings.evaluate_tasks, include=settings.evaluate_include, limit=settings.evaluate_limit)
        return [
            Evaluations(
                self.run_folder, every=settings.evaluate_every, request=request, sinks=self.metrics.sinks, on_done=self.metrics.pause
            )
        ]

    def _strategy(self, trainer: Namespace) -> Any:
        name = trainer.strategy
        if name == "fsdp":
            return ShardedStrategy(
                data_parallel_size=_world(trainer), tensor_parallel_size=1, save_distributed_checkpoint=self.config.sharded_checkpoints
            )
        if name == "ddp" or (name == "auto" and _world(trainer) > 1):
            # The only buffers are tables that every rank derives by itself.
            return DDPStrategy(broadcast_buffers=False)
        return name


def config_values(values: Any) -> dict[str, Any]:
    """A namespace of instantiated options as a dict."""
    return values.as_dict() if isinstance(values, Namespace) else dict(values)


def net_of(config: Namespace) -> ModelConfig:
    """The shape of the network in a parsed config."""
    values = config.model.net
    return values if isinstance(values, ModelConfig) else model_config(values.as_dict())


def adapter_of(config: Namespace) -> Optional[LoRA]:
    """The adapter in a parsed config."""
    values = config.model.adapter
    return values if values is None or isinstance(values, LoRA) else LoRA(**values.as_dict())


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _world(trainer: Namespace) -> int:
    devices = trainer.devices
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        local = len(devices)
    elif isinstance(devices, int) and devices > 0:
        local = devices
    else:
        local = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else 1
    return local * int(trainer.num_nodes)
