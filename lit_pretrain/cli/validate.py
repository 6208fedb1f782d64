"""Measure a finished run on its data's validation split, in nats per token and bits per byte.

`test` is the same on the test split.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lit_pretrain.chat.model_tokenizer import check_model_tokenizer
from lit_pretrain.checkpoint.layout import config_of, resolve
from lit_pretrain.checkpoint.lineage import check_files
from lit_pretrain.class_path import refuse_foreign_classes
from lit_pretrain.cli.command.arguments import Config, holds, name_run, read_configs
from lit_pretrain.cli.command.load_run import Weights, quiet_libraries
from lit_pretrain.cli.command.parser import raw_option, raw_switch
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.cli.train.precision import check_precision
from lit_pretrain.cli.train.resolve import build, names_class
from lit_pretrain.cli.train.train_cli import (
    DATA_PAGE,
    TrainParser,
    lightning_settings,
    say_of_trainer,
)
from lit_pretrain.cli.train.trainer import check_evaluation
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import DivergedError, UserError
from lit_pretrain.files import check_output, is_remote, write_file, writing
from lit_pretrain.redaction import refuse_hidden
from lit_pretrain.stage.stage import Stage


class EvaluateCLI(LightningCLI):
    """Network and data of a run, from its own config, with the weights of a checkpoint."""

    def __init__(self, verb: str, args: ArgsType) -> None:
        assert isinstance(args, list)
        self.verb = verb
        args = name_run(args, as_option=True)
        run = raw_option(args, "--run")
        # A misspelt option is reported before a run that is not there.
        there = run is not None and (is_remote(run) or Path(run).exists())
        self.newest = resolve(run) if run is not None and there else None
        """The newest checkpoint of the run, or the one that `--run` names."""
        self.chosen = names_class(args, None if self.newest is None else config_of(self.newest))
        """Whether the data is given by its class, and not as the settings of TextData."""
        super().__init__(
            Stage,
            LightningDataModule if self.chosen else TextData,
            subclass_mode_data=self.chosen,
            args=args,
            **lightning_settings(verb),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add which run is measured, and which of its checkpoints."""
        parser.add_argument(
            "--run", type=str, required=True, help="A run folder, or one checkpoint of a run."
        )
        parser.add_argument(
            "--checkpoint", type=str, default="last", help="For a run folder: last or best."
        )
        parser.add_argument(
            "--weights",
            type=Weights,
            default="trained",
            help="The weights as training left them, or their moving average (ema_half_life).",
        )
        parser.add_argument(
            "--accept",
            type=list[str],
            default=[],
            help="Fields in which the data may differ from the run, such as tokenizer.",
        )
        parser.add_argument(
            "--trust",
            type=bool,
            default=False,
            help="Import classes that the run's config names and that are not of lit_pretrain.",
        )
        parser.add_argument(
            "--json", type=str | None, default=None, help="Also write the figures to this file."
        )
        say_of_trainer(parser)
        assert isinstance(parser, TrainParser)
        parser.first_page = {
            "Run": ("run", "checkpoint", "weights", "accept", "json", "config", "print_config"),
            "Data": DATA_PAGE,
            "Machine": ("trainer.accelerator", "trainer.precision"),
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with the config of the run as the default."""
        assert isinstance(args, list)
        assert isinstance(parser, TrainParser)
        parser.refuse_unknown(args)  # before it is said that there is no such run
        run = raw_option(args, "--run")
        if run is not None:
            saved = config_of(self.newest or resolve(run))
            if not raw_switch(args, "--trust"):
                refuse_foreign_classes({g: saved[g] for g in ("model", "data")}, f"the run {run}")
            if not saved["data"] and not _gives_data(args):
                raise UserError(
                    f"{run} was not trained here and names no data; give a dataset that was"
                    " prepared with its tokenizer: --data.path data/NAME"
                )
            parser.beneath = [Config(f"the run {run}", {"data": saved["data"]})]
            parser.set_defaults(
                _defaults(saved, own_data=not names_class(args), chosen=self.chosen)
            )
        self.config = parser.parse_args(args)
        refuse_hidden(self.config.as_dict())

    def before_instantiate_classes(self) -> None:
        """Evaluate trained weights, never random ones."""
        check_evaluation(self.verb, self.config.trainer)
        if self.config.json is not None:
            check_output(self.config.json, f"--json={self.config.json}")
        if self.config.checkpoint not in ("last", "best"):
            raise UserError(
                f"--checkpoint={self.config.checkpoint!r} must be last or best; a single checkpoint"
                " is named by --run itself"
            )
        if self.config.model.reference is None:
            self.config.model.reference = (
                self.config.model.init_from
            )  # a policy is compared with what its run started from
        best = self.config.checkpoint == "best" or self.newest is None
        self.config.model.init_from = str(
            resolve(self.config.run, which=self.config.checkpoint) if best else self.newest
        )
        self.config.model.adapter = None  # its checkpoint is read with the base, as one network
        self.config.model.freeze = ()
        self.config.model.reference_cache = None  # held-out rows alone are looked at
        self.config.model.compile = "off"
        check_precision(self.config.trainer.precision)
        # Built here for its error messages, which the parser would hide in one of its own.
        build(self.config.data)

    def instantiate_classes(self) -> None:
        """Make everything, and refuse data that does not speak the language of the run."""
        super().instantiate_classes()
        self.model.origin.average = self.config.weights == "average"
        place, accept = self.config.model.init_from, tuple(self.config.accept)
        language = check_files(place, accept=accept)
        if language is not None:
            data = self.datamodule
            check_model_tokenizer(
                {"tokenizer": language.tokenizer.hash, "vocabulary": language.tokenizer.vocab_size},
                {"tokenizer": data.tokenizer_hash, "vocabulary": data.vocab_size},
                owner=f"the run of {place}", other=f"the data {data.location}", accept=accept,
                mend="Measure on data that was prepared with the run's tokenizer.",
            )  # fmt: skip

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that writes nothing."""
        wanted = self.config.trainer
        return Trainer(
            accelerator=wanted.accelerator,
            devices=1,
            precision=wanted.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


def evaluate(verb: str, argv: list[str]) -> int:
    """Run `validate` or `test`.

    Returns:
        The exit code.
    """
    quiet_libraries()
    cli = EvaluateCLI(verb, argv)
    run = cli.trainer.validate if verb == "validate" else cli.trainer.test
    run(cli.model, datamodule=cli.datamodule, verbose=False)
    figures = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    name = "val" if verb == "validate" else "test"
    print(
        f"{cli.config.model.init_from} on the {'validation' if name == 'val' else 'test'} split of"
        f" {cli.datamodule.location}:"
    )
    for line in evaluation_table(figures, name, cli.datamodule.sources):
        print(line)
    check_losses(figures, name, cli.config.model.init_from)
    if cli.config.json is not None:
        with writing(f"--json={cli.config.json}"):
            write_file(Path(cli.config.json), json.dumps(figures, indent=1) + "\n")
    return 0


def check_losses(figures: Mapping[str, float], name: str, checkpoint: str) -> None:
    """Refuse to call a network measured whose loss is no number.

    Args:
        figures: What the stage published.
        name: val or test.
        checkpoint: Names the network in messages.

    Raises:
        DivergedError: A loss is not finite.
    """
    bad = [
        f"{key}={value}"
        for key, value in figures.items()
        if key.startswith((f"{name}/loss", f"{name}_loss/")) and not math.isfinite(value)
    ]
    if bad:
        raise DivergedError(
            f"{', '.join(bad)}: the network of {checkpoint} does not compute numbers on this data;"
            " measure an older checkpoint, and train on from that"
        )


def evaluation_table(figures: dict[str, float], name: str, sources: Sequence[str]) -> list[str]:
    """Write loss and bits per byte by source.

    Other objectives have their loss by source, and their own means.

    Args:
        figures: What the stage published.
        name: val or test.
        sources: Names of the data's sources.
    """
    bits = f"{name}/bits_per_byte" in figures
    lines = [
        f"{'':12} {'nats/token' if bits else 'loss':>10}" + (f" {'bits/byte':>10}" if bits else "")
    ]
    for label, end in (("all", ""), *((source, f"/{source}") for source in sources)):
        keys = [
            f"{name}_{key}{end}" if end else f"{name}/{key}"
            for key in (("loss", "bits_per_byte") if bits else ("loss",))
        ]
        if keys[0] in figures:
            lines.append(f"{label:12} " + " ".join(f"{figures[key]:10.4f}" for key in keys))
    if not bits:
        lines += [
            f"{key.removeprefix(f'{name}/')}: {value:.4f}"
            for key, value in figures.items()
            if key.startswith(f"{name}/")
        ]
    return lines


def _gives_data(args: Sequence[str]) -> bool:
    """Tell whether a command line or its configs say which data to read."""
    options = (arg.partition("=")[0].partition(".")[0] for arg in args)
    return "--data" in options or any(holds(file.content, "data") for file in read_configs(args))


def _defaults(saved: dict[str, Any], *, own_data: bool, chosen: bool) -> dict[str, Any]:
    """Take the run's model and precision as the parser's defaults.

    Its data, too, unless other data is named, which then has settings of its own.

    Args:
        saved: Config of the run.
        own_data: Whether the arguments name no class of data.
        chosen: Whether data is a class here, and not the settings of TextData.
    """
    flat: dict[str, Any] = {"trainer.precision": saved["trainer"]["precision"]}
    whole = {"data": saved["data"]} if own_data and "class_path" in saved["data"] else {}
    for group in ("model",) if chosen else ("model", "data"):
        for key, value in saved[group].items():
            if key in ("adapter", "freeze", "float8"):
                continue  # for training only
            if key == "net":
                flat |= {f"model.net.{k}": v for k, v in value.items()}
            else:
                flat[f"{group}.{key}"] = value
    return flat | whole


def main(argv: list[str]) -> int:
    """Run `lit_pretrain validate`."""
    return evaluate("validate", argv)


VERB = Verb(main, example="lit_pretrain validate --run runs/quickstart")
