"""TrainCLI: from arguments to a resolved config, a Trainer, a stage and its data."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lit_pretrain.callbacks.noise_scale import check_noise_scale
from lit_pretrain.chat.model_tokenizer import check_model_tokenizer
from lit_pretrain.checkpoint.lineage import check_files
from lit_pretrain.checkpoint.network import Parent, find_parent
from lit_pretrain.checkpoint.resume_contract import HELD, contract_of
from lit_pretrain.cli.command.arguments import help_topic, is_file, split_configs
from lit_pretrain.cli.command.help_page import field_texts
from lit_pretrain.cli.command.parser import VerbParser, asks_only, parser_options, raw_parent
from lit_pretrain.cli.train.auto_parallel import AUTO, choose_parallel
from lit_pretrain.cli.train.fit_plan import check_memory, layout_of
from lit_pretrain.cli.train.own_parts import check_constructors, check_parts
from lit_pretrain.cli.train.precision import check_precision, default_precision
from lit_pretrain.cli.train.resolve import (
    DATA_RIVALS,
    UNITS,
    build,
    check_finite,
    mesh_of,
    names_class,
    net_of,
    resolve_length,
    settings_of,
    training_flops,
    transferred_net,
)
from lit_pretrain.cli.train.run_place import RunPlace, RunSettings, check_place, resolve_place
from lit_pretrain.cli.train.trainer import (
    OWNED,
    RunCallbacks,
    RunTrainer,
    check_owned,
    make_trainer,
    time_limit,
    world_of,
)
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError, warn
from lit_pretrain.model.config import padded_vocab_size
from lit_pretrain.parallel.mesh import check_sizes
from lit_pretrain.parallel.strategy import STRATEGIES
from lit_pretrain.plain_data import read_text
from lit_pretrain.redaction import origin_of, redact, refuse_hidden
from lit_pretrain.report.run_folder import RunLock
from lit_pretrain.scaling.memory import Layout
from lit_pretrain.stage.guard import GuardSettings
from lit_pretrain.stage.stage import Stage
from lit_pretrain.step_size import Division
from lit_pretrain.tokenizer.tokenizer_files import TOKENIZER_FILENAME as TOKENIZER


def check_parent(
    parent: Parent, data: BaseData, *, accept: Sequence[str] = (), mend: str | None = None
) -> None:
    """Refuse data whose token ids, separators or conversations mean something else to the parent.

    Args:
        parent: The parent.
        data: The data.
        accept: Fields that may differ.
        mend: What to do about another tokenizer; null: prepare the data again.

    Raises:
        UserError: They differ, or the parent's own files are no longer those of its record; names
            each field and both values.
    """
    language = check_files(parent.path, accept=tuple(accept))
    if language is None and parent.tokenizer_hash is None:
        warn(
            f"{parent.path} holds no {TOKENIZER}: whether the data's token ids mean the same to it"
            " cannot be checked"
        )
        return
    expected: dict[str, object] = {"tokenizer": parent.tokenizer_hash}
    if language is not None:
        own = language.tokenizer
        expected = {
            "tokenizer": own.hash,
            "vocabulary": own.vocab_size,
            "bos_id": own.bos_id,
            "eos_id": own.eos_id,
        }
        if language.template is not None and data.template_hash is not None:
            expected["template"] = language.template.hash
    if (
        parent.tokenizer_hash is not None
        and expected["tokenizer"] != parent.tokenizer_hash
        and "tokenizer" not in accept
    ):
        raise UserError(
            f"{tokenizer_folder(parent)} does not fit its own checkpoint {parent.path}:\n "
            f" tokenizer (sha256 of tokenizer.json): expected {parent.tokenizer_hash}, found"
            f" {expected['tokenizer']}\nPut its tokenizer back, or accept it by name: --accept"
            " '[tokenizer]'"
        )
    tokenizer = data.tokenizer
    if language is not None and tokenizer.tokens_beyond(language.tokenizer) is not None:
        accept = [*accept, "tokenizer", "vocabulary"]  # its rows are made (`extend_vocabulary`)
    found = {
        "tokenizer": data.tokenizer_hash, "vocabulary": data.vocab_size, "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "template": data.template_hash,
    }  # fmt: skip
    if expected["tokenizer"] == found["tokenizer"]:
        mend = (
            "Leave data.template: auto, which takes the parent's."
            if expected.get("template", found["template"]) != found["template"]
            else ""
        )
    check_model_tokenizer(
        expected, found, owner=f"the parent {parent.path}", other=f"the data {data.location}",
        accept=accept,
        mend=_prepare_again(parent) if mend is None else mend,
    )  # fmt: skip


def _prepare_again(parent: Parent) -> str:
    return (
        "Prepare the data with the parent's: lit_pretrain prepare ... --tokenizer.kind file"
        f" --tokenizer.path {tokenizer_folder(parent)}."
    )


def tokenizer_folder(parent: Parent) -> Path:
    """Find the folder of a parent's tokenizer."""
    return parent.path if parent.tokenizer_hash is None else parent.path.parent.parent


CONFIG_PRESETS = Path(__file__).parent / "presets"
NEEDS_PARENT = ("posttrain", "finetune")


def _options(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name each option of a config with its value; a class with its options is one value."""
    for name, value in content.items():
        if isinstance(value, Mapping) and "class_path" not in value:
            yield from _options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


DATA_PAGE = (
    "data", "data.path", "data.sources", "data.seq_len", "data.global_batch_tokens",
    "data.global_batch_rows", "data.micro_batch_size", "data.weights",
)  # fmt: skip
FIRST_PAGE = {
    "Run": (
        "config", "from", "name", "resume", "max_steps", "max_tokens", "max_epochs",
        "validate_every", "checkpoint_every", "log_every", "print_config",
    ),
    "Data": DATA_PAGE,
    "Network": (
        "model.net.n_layer", "model.net.width", "model.net.n_head", "model.net.*",
    ),
    "Optimization": (
        "model.objective", "model.optimizer", "model.optimizer.lr", "model.optimizer.matrix_lr",
        "model.optimizer.weight_decay", "model.optimizer.*",
        "model.schedule.kind", "model.schedule.warmup", "model.clip_norm",
        "model.adapter",
    ),
    "Machine": (
        "trainer.devices", "trainer.accelerator", "trainer.precision", "trainer.strategy",
        "model.compile", "model.activation_checkpointing",
    ),
}  # fmt: skip
"""What one sets in the first week, on the page of `--help`."""
TRAINER_TEXTS = {
    "accelerator": "auto, which takes a GPU where there is one; cpu, gpu, cuda or mps.",
    "devices": "Devices of each machine: a number, a list such as [0, 3], or auto for all of them.",
    "num_nodes": "Machines that train together.",
    "precision": (
        "bf16-mixed, 32-true or bf16-true. Default: bf16-mixed where the device computes in bf16,"
        " else 32-true."
    ),
    "strategy": f"How the network is laid over devices: {', '.join(STRATEGIES)}.",
    "max_time": (
        "Wall time after which a run saves itself and stops: DD:HH:MM:SS, or {minutes: 90}."
    ),
}
"""What Lightning's own texts say at length, or of options that are not ours."""


class TrainParser(VerbParser, LightningArgumentParser):
    """LightningCLI's parser with hints for misspelt names, and checks of the user's own parts."""

    rivals = ((*UNITS, "dollars", "minutes"), *DATA_RIVALS)  # two are lengths of `plan`
    first_page = FIRST_PAGE
    hidden = frozenset(f"trainer.{name}" for name in OWNED)

    # Lightning's signature names options that ours only passes on.
    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse, after a look at the classes that the arguments name.

        Raises:
            UserError: A class is not there, or not what its setting takes.
        """
        if args is not None and self.exit_on_error:  # not within a parse
            check_parts(args)
        return super().parse_args(args, *rest, **options)


def description_of(command: str) -> str:
    """Describe a verb, or a part of one: the first line of its docstring, or its help."""
    verb, _, part = command.partition(" ")
    module = importlib.import_module(f"lit_pretrain.cli.{verb}")
    if part:
        return str(module.VERB.parts[part].help)
    return (module.__doc__ or "").partition("\n")[0]


def lightning_settings(verb: str) -> Mapping[str, Any]:
    """Return the settings of LightningCLI that the verbs share which train and measure."""
    return {
        "run": False,
        "auto_configure_optimizers": False,
        "save_config_callback": None,
        "seed_everything_default": False,
        # Checkpoints hold no hyper-parameters that could overrule the config.
        "load_from_checkpoint_support": False,
        "parser_class": TrainParser,
        "parser_kwargs": parser_options(verb) | {"description": description_of(verb)},
    }


def say_of_trainer(parser: LightningArgumentParser) -> None:
    """Say of the Trainer's options what they are here."""
    for action in parser._actions:
        action.help = TRAINER_TEXTS.get(action.dest.removeprefix("trainer."), action.help)


class TrainCLI(LightningCLI):
    """Parses, resolves and instantiates; running is left to `train`."""

    def __init__(
        self, verb: str, args: ArgsType, lock: RunLock | None = None, *, fetch: bool = True
    ) -> None:
        self.verb = verb
        self.fetch = fetch
        """Whether the run's folder may be behind its remote home."""
        self.place: RunPlace
        self.callbacks: RunCallbacks
        self.parent: Parent | None = None
        self.settings: RunSettings
        self.layout: Layout
        self.data: BaseData
        """The data as the config says it, before anything else is made."""
        self.chosen: str | None = None
        """What `parallel: auto` has chosen."""
        self.lowered: list[str] = []
        """Why the micro-batch is smaller than the config says, for each size of a step."""
        self.lock = lock or RunLock()
        self.finished = False
        """Whether a run that is asked to go on has made all of its steps already."""
        assert isinstance(args, list)
        chosen = names_class(args)
        try:
            with field_texts(read=help_topic(args) is not None):
                super().__init__(
                    Stage,
                    LightningDataModule if chosen else TextData,
                    trainer_class=RunTrainer,
                    subclass_mode_data=chosen,
                    args=args,
                    **lightning_settings(verb),
                )
        except BaseException:  # an exit and Ctrl-C leave no lock behind, either
            self.lock.release()
            raise

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with the shape of the parent's network as the default."""
        assert isinstance(args, list)
        assert isinstance(parser, TrainParser)
        preset = CONFIG_PRESETS / f"{self.verb}.yaml"
        if preset.exists():
            # As defaults and not as a config: another optimizer must not take the preset's rate.
            parser.set_defaults(dict(_options(yaml.safe_load(preset.read_text(encoding="utf-8")))))
        parser.refuse_unknown(args)  # before it is said that there is no such parent
        parent = raw_parent(args)
        if parent is None and self.verb in NEEDS_PARENT and not asks_only(args):
            raise UserError(
                f"{self.verb} needs a parent: give --from RUN, the folder of a finished run or one"
                " of its checkpoints, or --from FOLDER, a Hugging Face model"
            )
        if parent is not None:
            self.parent = find_parent(parent)
            parser.set_defaults(
                {f"model.net.{field}": value for field, value in self.parent.shape.items()}
            )
        self.config = parser.parse_args(args)
        self.origin = origin_of(
            [read_text(config) if is_file(config) else config for config in split_configs(args)[0]]
        )
        refuse_hidden(self.config.as_dict())

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run as a whole."""
        parser.add_class_arguments(RunSettings, None)
        text = (
            "Parent whose weights the run starts from: a run folder, one of its checkpoints, or a"
            " Hugging Face folder."
        )
        parser.add_argument("--from", type=str | None, default=None, help=text)
        if self.verb != "fit":
            text = (
                "Special tokens to add to the parent's, as a list: '[<|im_start|>, <|im_end|>]'."
                " Their rows of embedding and head begin as the mean of what they were spelt by."
            )
            parser.add_argument("--tokenizer.add", type=list[str] | None, default=None, help=text)
        parser.set_defaults({"model.net.vocab_size": None, "trainer.precision": None})
        say_of_trainer(parser)

    # ------------------------------------------------------------------ resolve

    def before_instantiate_classes(self) -> None:
        """Fill in what depends on the data, the machine and the parent.

        So the saved config says it all.
        """
        config = self.config
        self.settings = RunSettings(
            **{field: config[field] for field in RunSettings.__dataclass_fields__}
        )
        if isinstance(self.settings.guard, Namespace):
            self.settings.guard = GuardSettings(**self.settings.guard.as_dict())
        check_owned(config.trainer)
        time_limit(config.trainer.max_time)
        self.take_tokenizer()
        self.data = data = build(config.data)
        self.extend_vocabulary()
        if config.model.net.vocab_size is None:
            config.model.net.vocab_size = padded_vocab_size(data.vocab_size)
        if config.trainer.precision is None:
            config.trainer.precision = default_precision(config.trainer.accelerator)
        check_precision(config.trainer.precision)
        if config.parallel == AUTO:
            self.chosen = choose_parallel(config, data, world_of(config.trainer))
        sizes = mesh_of(config, world_of(config.trainer))
        if sizes is not None:
            data.devices_together = sizes.together
        division = self.divide_step()
        check_noise_scale(self.settings.noise_scale_every, division, sizes)
        self.scale_logits()
        if sizes is not None:
            check_sizes(sizes, net_of(config), data.seq_len)
        if self.parent is not None:
            config.model.init_from = str(self.parent.path)
            mend = data.tokenizer_advice
            check_parent(self.parent, data, accept=self.settings.accept, mend=mend)
        if config.model.adapter is not None and config.sharded_checkpoints:
            raise UserError(
                "sharded_checkpoints is for large checkpoints; that of model.adapter is small: set"
                " sharded_checkpoints: false"
            )
        resolve_length(config, data)
        resolved = self.plain_config()
        check_finite(resolved)
        self.place = self.find_place(updates=data.updates)
        data.leave_out(self.place.skips)
        config.skip_steps = str(data.skips) if data.skips else None
        self.contract = contract_of(
            resolved | {"skip_steps": config.skip_steps},
            manifest_hash=data.manifest_hash,
            tokenizer_hash=data.tokenizer_hash,
            template_hash=data.template_hash,
        )
        if self.place.held:
            self.contract[HELD] = str(self.place.held)
        config.rewind_to = None  # done once: whoever runs the saved config does not repeat it
        data.check_length(config.max_steps)
        self.layout = layout_of(config, data, world_of(config.trainer))
        check_memory(
            net_of(config),
            self.layout,
            ranks_here=self.layout.devices // int(config.trainer.num_nodes),
            allow=self.settings.allow_oom,
        )
        self.finished = check_place(
            self.place, config, self.settings, contract=self.contract, data=data
        )

    def find_place(self, *, updates: int) -> RunPlace:
        """Find folder and checkpoint of the run, and lock the folder."""
        return resolve_place(
            self.config, self.settings, self.verb, self.lock, updates=updates, fetch=self.fetch
        )

    def take_tokenizer(self) -> None:
        """Let rows be encoded by the parent's tokenizer where the config names none.

        `tokenizer.add` becomes a setting of the rows, which say what is added.
        """
        settings = settings_of(self.config.data)
        if "tokenizer" in settings and settings["tokenizer"] is None and self.parent is not None:
            settings["tokenizer"] = str(tokenizer_folder(self.parent))
        if (add := self.config.get("tokenizer.add")) is not None:
            if "add_tokens" not in settings:
                raise UserError(
                    "tokenizer.add goes with rows; prepared text holds ids already: prepare it with"
                    " a tokenizer that has the tokens (tokenizer.path)"
                )
            settings["add_tokens"] = add
            self.config["tokenizer.add"] = None  # the saved config says it once

    def extend_vocabulary(self) -> None:
        """Give the network rows for tokens that the data's tokenizer adds to the parent's.

        Another vocabulary altogether is refused later, by `check_parent`.
        """
        config = self.config
        if self.parent is None:
            return
        language = check_files(self.parent.path, accept=tuple(self.settings.accept))
        if language is None or language.tokenizer.hash == self.data.tokenizer_hash:
            return
        parent = language.tokenizer
        tokens = self.data.tokenizer.tokens_beyond(parent)
        if tokens is None:
            return
        config.model.new_tokens = Namespace(  # type: ignore[no-untyped-call]  # jsonargparse
            first=parent.vocab_size, spelt=[parent.encode(token) for token in tokens]
        )
        config.model.net.vocab_size = max(
            int(self.parent.shape["vocab_size"]), padded_vocab_size(self.data.vocab_size)
        )
        warn(
            f"{len(tokens)} new tokens ({', '.join(tokens[:8])}{', ...' if tokens[8:] else ''}) get"
            " rows of embedding and head: the mean of what the parent spelt them by"
        )

    def scale_logits(self) -> None:
        """Set the scale of the logits that a transfer gives a tied head.

        Raises:
            UserError: The parent was trained with another one.
        """
        config = self.config
        wanted = transferred_net(config).logit_scale
        known = wanted if self.parent is None else self.parent.shape.get("logit_scale")
        if config.model.transfer is not None and known != wanted:
            raise UserError(
                f"model.transfer would multiply the logits of {config['from']} by {wanted or 1:g},"
                f" which was trained with {known or 1:g}: give the model.transfer of its own run,"
                " or none"
            )
        config.model.net.logit_scale = wanted

    def divide_step(self) -> Division:
        """Divide the steps over the devices, with a smaller micro-batch where that takes one.

        Returns:
            The division with the most micro-batches.
        """
        settings, world = settings_of(self.config.data), world_of(self.config.trainer)
        self.lowered = self.data.lower_micro_batch(world)
        for name, value in self.data.batch_settings.items():
            settings[name] = value
        return max(self.data.divide(world), key=lambda division: division.micro_batches)

    def plain_config(self) -> dict[str, Any]:
        """Return the resolved config as it is saved: nested plain values, without secrets."""
        try:
            text = self.parser.dump(self.config, skip_unset=False)
        except ValueError as error:
            raise UserError(f"config.yaml cannot hold this config: {error}") from error
        loaded: dict[str, Any] = redact(yaml.safe_load(text), self.origin)
        return loaded

    # ------------------------------------------------------------------ instantiate

    def instantiate_classes(self) -> None:
        """Make everything; rows that were read to resolve the config are not read again.

        Raises:
            UserError: A constructor of the user's raises.
        """
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except Exception:  # whatever a constructor raises
            check_constructors(self.config)  # of lists jsonargparse says only that no type fits
            raise
        self.datamodule.share(self.data)
        self.datamodule.devices_together = self.data.devices_together
        self.model.guard_settings = self.settings.guard
        self.model.held = self.place.held

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with our callbacks, logger and checkpoint route."""
        self.callbacks = RunCallbacks(
            self.place.folder,
            self.settings,
            sources=self.datamodule.sources,
            batch=self.data.batch_tokens,
            flops_per_token=training_flops(self.config, seq_len=self.data.seq_len),
            contract=self.contract,
            back_to=self.place.back_to,
            home=self.place.home,
            seconds=time_limit(self.config.trainer.max_time),
        )
        values = self.config_init["trainer"]
        instantiated = values.as_dict() if isinstance(values, Namespace) else values
        return make_trainer(
            self.config,
            instantiated,
            self.place,
            self.callbacks.in_order(),
            checkpoint_io=self.callbacks.checkpoints.io,
            pause=self.callbacks.pause,
        )
