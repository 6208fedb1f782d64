"""Options of `plan`: its own, and those of `fit`, which it reads without torch.

Options of `fit` that a plan needs have types; the rest are known by name.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Optional

import yaml
from jsonargparse import Namespace

from lit_pretrain.cli.command.parser import VerbParser, make_parser
from lit_pretrain.cli.signatures import (
    data_parameters,
    schedule_parameters,
    stage_parameters,
    trainer_parameters,
)
from lit_pretrain.cli.train.run_settings import RunSettings
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.optim import AdamW, MuonAdamW, OptimizerRecipe


@dataclass
class PlanSettings:
    """Options of `lit_pretrain plan` that a run's config does not have."""

    device: Optional[str] = None
    """Kind of the devices, as the driver names it or short: H100, "NVIDIA H200", MI300X, TPU v5p.
    Default: none, so no time and no limit of memory but what is given.
    """
    devices: Optional[int] = None
    """Number of devices. Default: trainer.devices × trainer.num_nodes where they are numbers, else
    1, or as many as a given time requires.
    """
    mfu: Optional[float] = None
    """Share of the peak that training reaches, in (0, 1]. Default: depends on the device."""
    tokens_per_second: Optional[float] = None
    """Measured on one device, in place of peak × mfu: `fit` prints it. The way to plan on a CPU."""
    goodput: Optional[float] = None
    """Share of the time in which training makes progress. Default: 0.9."""
    price: Optional[float] = None
    """Dollars per device-hour. Default: none, and the plan names no cost."""
    dollars: Optional[float] = None
    """Dollars to spend, in place of a length."""
    days: Optional[float] = None
    """Wall-clock time in days, in place of a length. With a length, the plan solves for the number
    of devices, or with --devices for the goodput.
    """
    hours: Optional[float] = None
    """Wall-clock time in hours, in place of days."""
    memory_gib: Optional[float] = None
    """Memory of one device in GiB (1024³ bytes). Default: depends on the device."""
    head: Literal["chunked", "plain"] = "chunked"
    """Output head: chunked, as in `fit`, or plain, which keeps the logits of all tokens."""
    stage: Literal["pretrain", "sft", "dpo", "lora", "qlora"] = "pretrain"
    """Kind of training: dpo adds a frozen reference, lora freezes the weights, qlora also stores
    them in four bits.
    """
    lora_rank: int = 16
    """Rank of the adapter of every matrix of the blocks, for lora and qlora."""
    unique_tokens: Optional[float] = None
    """Distinct training tokens. Default: those of the dataset at data.path, if there is one."""
    inference_tokens: Optional[float] = None
    """Tokens that the model will read and write in its life. The plan then names the size that is
    cheapest to train and serve at the same loss.
    """
    law: str = "besiroglu"
    """Published law by name: besiroglu, besiroglu_lad, hoffmann, kaplan or muennighoff. Or a law of
    your own runs: the file that `lit_pretrain scaling fit ... --out FILE` has written.
    """
    png: Optional[str] = None
    """File for a picture of the plan: memory by phase, and loss along the budget."""


RECIPES: tuple[type[OptimizerRecipe], ...] = (AdamW, MuonAdamW)
"""Recipes whose options may be given without naming the class."""
# Types of the options of `fit` that a plan reads.
LENGTHS: dict[str, Any] = {
    "max_steps": Optional[int],
    "max_tokens": Optional[float],
    "max_flops": Optional[float],
}
DATA: dict[str, Any] = {
    "path": Optional[str], "seq_len": Optional[int], "global_batch_tokens": Optional[int],
    "micro_batch_size": Optional[int],
}  # fmt: skip
TRAINER: dict[str, Any] = {"num_nodes": Optional[int], "precision": Optional[str]}
MODEL: dict[str, Any] = {"activation_checkpointing": bool, "compile": Optional[str]}
_HELP = {
    "max_steps": "Length in optimizer steps.",
    "max_tokens": "Length in tokens.",
    "max_flops": "Length in training FLOPs, exact ones with full attention.",
    "data.path": "Dataset, whose unique tokens and vocabulary are read if it is there.",
    "data.seq_len": "Tokens of a row. Default: that of `fit`; of a bare shape its max_seq_len.",
    "data.global_batch_tokens": (
        "Tokens of an optimizer step. Default: that of `fit`; none for a bare shape."
    ),
    "data.micro_batch_size": (
        "Rows of one device at once. Default: that of `fit`; 1 for a bare shape."
    ),
    "trainer.num_nodes": "Nodes of trainer.devices each.",
    "trainer.precision": (
        "bf16-mixed, bf16-true, 32-true or, for the peak alone, fp8. Default: bf16-mixed."
    ),
    "model.activation_checkpointing": "Keep only the input of every block.",
    "model.compile": "auto, on or off; uncompiled, more is kept for the backward pass.",
}


def plan_parser(description: str) -> VerbParser:
    """Build the parser of the options of `fit` and of a plan's own.

    It knows the options that a plan does not need, but hides them from the help.
    """
    parser = make_parser("plan", description)
    parser.add_class_arguments(PlanSettings)
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON.")
    for prefix, typed, known in (
        ("", LENGTHS, [*RunSettings.__dataclass_fields__, "from", "seed_everything"]),
        ("data.", DATA, data_parameters()),
        ("trainer.", TRAINER, trainer_parameters()),
        ("model.", MODEL, [name for name in stage_parameters() if name != "net"]),
    ):
        for name in known:
            default = False if typed.get(name) is bool else None
            text = _HELP.get(prefix + name, argparse.SUPPRESS)
            # With the type Any jsonargparse would import the classes that a value names, and torch
            # with them.
            kind = {"type": typed[name]} if name in typed else {"type": _as_it_is}
            parser.add_argument(f"--{prefix}{name}", default=default, help=text, **kind)
    parser.add_class_arguments(ModelConfig, "model.net")
    parser.set_defaults({"model.net.vocab_size": None})
    return parser


def _as_it_is(value: Any) -> Any:
    """Return the value of an option unchanged: no plan depends on it, or only by name."""
    return value


def parse(parser: VerbParser, arguments: list[str]) -> tuple[Namespace, type[OptimizerRecipe]]:
    """Parse the arguments; return the options and the recipe's class of the optimizer.

    Options within optimizer, schedule, objective and the like (`--model.schedule.warmup 2%`) are
    checked by name where their class is known; no plan depends on their values, so they are not
    read.
    """
    kept, optimizer = _without_inner(arguments)
    config = parser.parse_args(kept)
    # jsonargparse accepts an unknown section that is empty.
    for content in _contents(arguments):
        _check(content, {str(action.dest).split(".")[0] for action in parser._actions}, "")
    for name, known in (
        ("schedule", set(schedule_parameters())),
        ("optimizer", {"class_path", "init_args"}),
    ):
        value = config.model[name]
        if isinstance(value, dict):
            _check(value, known, f"model.{name}.")
            if name == "optimizer":
                _check(
                    value.get("init_args") or {},
                    _fields_of(value.get("class_path")),
                    "model.optimizer.init_args.",
                )
    # Of several files jsonargparse keeps the last mapping only, and would lose the class that an
    # earlier file names.
    named = optimizer or _named_in_files(arguments)
    return config, MuonAdamW if named is None else optimizer_class(named)


def optimizer_class(path: str) -> type[OptimizerRecipe]:
    """Find an optimizer's recipe by its class path; those of `lit_pretrain.optim` by name alone.

    Raises:
        UserError: There is no such class, or it is no recipe.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module or "lit_pretrain.optim"), name)
    except (ImportError, AttributeError, TypeError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, OptimizerRecipe)):
        raise UserError(
            f"model.optimizer is {path!r}, which is no class path of an optimizer's recipe; take"
            f" {', '.join(recipe.__name__ for recipe in RECIPES)}, or the path of a subclass of"
            " lit_pretrain.optim.OptimizerRecipe"
        )
    return found


def describes_data(arguments: list[str]) -> bool:
    """Tell whether a config file has a data section.

    Without one it is a bare shape, which is planned for its own sequence length.
    """
    return any("data" in content for content in _contents(arguments))


def _without_inner(arguments: list[str]) -> tuple[list[str], Optional[str]]:
    """Check and remove options within model sections; return the rest and the optimizer's class."""
    kept: list[str] = []
    optimizer: Optional[str] = None
    i = 0
    while i < len(arguments):
        name, equals, value = arguments[i].partition("=")
        parts = name.removeprefix("--").rstrip("+").split(".")
        inner = name.startswith("--model.") and len(parts) > 2 and parts[1] != "net"
        whole = name == "--model.optimizer"
        if not inner and not whole:
            kept.append(arguments[i])
            i += 1
            continue
        if not equals:
            if i + 1 >= len(arguments):
                raise UserError(f"{name} has no value")
            value = arguments[i + 1]
        if parts[1] not in stage_parameters():
            raise UserError(
                f"there is no option {name}.{did_you_mean(parts[1], stage_parameters())}"
            )
        if parts[1] == "schedule":
            _check({parts[2]: value}, set(schedule_parameters()), "model.schedule.")
        if parts[1] == "optimizer" and not whole and parts[2] != "class_path":
            _check({parts[-1]: value}, _fields_of(None), "model.optimizer.")
        if whole or parts[1:] == ["optimizer", "class_path"]:
            optimizer = (
                value
                if not value.lstrip().startswith("{")
                else str(yaml.safe_load(value).get("class_path"))
            )
        i += 1 if equals else 2
    return kept, optimizer


def _fields_of(class_path: Optional[str]) -> set[str]:
    if class_path is not None:
        return set(inspect.signature(optimizer_class(class_path)).parameters)
    return {name for recipe in RECIPES for name in inspect.signature(recipe).parameters}


def _check(values: dict[str, Any], known: Iterable[str], prefix: str) -> None:
    names = sorted(known)
    for name in values:
        if name not in names:
            raise UserError(f"{prefix}{name} is not an option of `fit`.{did_you_mean(name, names)}")


def _contents(arguments: list[str]) -> list[dict[str, Any]]:
    """Load the config files as plain values; the parser reports those that cannot be read."""
    files = [arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a in ("-c", "--config")]
    files += [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    loaded = [
        yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        for file in files
        if Path(file).is_file()
    ]
    return [content for content in loaded if isinstance(content, dict)]


def _named_in_files(arguments: list[str]) -> Optional[str]:
    found = None
    for content in _contents(arguments):
        spec = (content.get("model") or {}).get("optimizer")
        found = spec if isinstance(spec, str) else (spec or {}).get("class_path") or found
    return found
