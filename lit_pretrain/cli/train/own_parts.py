"""Own parts: the classes of the user's that a config names, checked before anything is made.

jsonargparse would say of a module that cannot be imported that it is no valid subtype, and a method
that is missing would end the first step. Here each mistake is one line, before the first weight.
"""

import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

import lit_pretrain.data
import lit_pretrain.objective
import lit_pretrain.optim
import lit_pretrain.rollout
from lit_pretrain.class_path import check_call, import_class_path
from lit_pretrain.cli.command.arguments import read_configs, split_configs
from lit_pretrain.cli.train.resolve import instantiate
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.objective import Objective
from lit_pretrain.optim import OptimizerRecipe
from lit_pretrain.rollout import RolloutEngine


class OwnPart(NamedTuple):
    """A setting whose value is the class path of a part of a run."""

    bases: tuple[type, ...]
    """Classes of which the part must be a subclass, of one of them."""
    own: tuple[str, ...] = ()
    """Methods of a base that a part must define although the base has them."""
    words: tuple[str, ...] = ()
    """What may stand in place of a class path."""
    home: Any = None
    """The module whose classes may be named without their module."""


PARTS = {
    "data": OwnPart((BaseData,), home=lit_pretrain.data),
    "model.objective": OwnPart((Objective,), own=("forward",), home=lit_pretrain.objective),
    "model.optimizer": OwnPart(
        (OptimizerRecipe, torch.optim.Optimizer), own=("step",), home=lit_pretrain.optim
    ),
    "model.rollout.engine": OwnPart((RolloutEngine,), home=lit_pretrain.rollout),
    "trainer.callbacks": OwnPart((Callback,)),
    "trainer.logger": OwnPart((Logger,), words=("wandb", "mlflow")),
    "trainer.profiler": OwnPart((Profiler,), words=("simple", "advanced", "pytorch")),
}

Named = tuple[str, Any, Mapping[str, Any]]
"""A setting, the class path that it gives, and its options."""


def check_parts(args: Sequence[str]) -> None:
    """Check every part that raw arguments and their config files name.

    Raises:
        UserError: A module or a class does not exist or cannot be imported, or a class is not of
            the kind that the setting takes.
    """
    layers = [dict(_settings(config.content)) for config in read_configs(args)]
    typed: dict[str, set[str]] = {setting: set() for setting in PARTS}
    others = iter(split_configs(args)[1])
    for arg in others:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            value = value if equals else next(others, "")
            setting = name.removesuffix("+").removesuffix(".class_path")
            if setting in PARTS:
                layers.append({setting: _read(value)})
            for known in PARTS:
                if setting.startswith(f"{known}."):
                    option = setting.removeprefix(f"{known}.").removeprefix("init_args.")
                    typed[known].add(option.partition(".")[0])
    named = [part for layer in layers for part in _named(layer)]
    for setting, _, options in named:
        typed[setting] |= options.keys()
    for setting, path, options in named:
        check_part(setting, path, options, given=typed[setting])


def _named(settings: Mapping[str, Any]) -> Iterator[Named]:
    for setting, value in settings.items():
        yield from _parts(setting, value)


def _settings(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Find what a config says of each part."""
    for setting in PARTS:
        value: Any = content
        for key in setting.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            yield setting, value


def _read(text: str) -> Any:
    """Read the value of an option; what is no YAML is left to the parser."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _parts(setting: str, value: Any) -> Iterator[Named]:
    """Find the parts that the value of a setting names: one, or a list of them."""
    if isinstance(value, list):
        for item in value:
            yield from _parts(setting, item)
    elif isinstance(value, str):
        yield setting, value, {}
    elif isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        options = value.get("init_args") or {}
        yield setting, value["class_path"], options if isinstance(options, Mapping) else {}


def check_part(
    setting: str, path: str, options: Mapping[str, Any], *, given: Collection[str]
) -> None:
    """Check one part.

    Args:
        setting: The setting that names it.
        path: Its class path, or the name of one of ours.
        options: Its `init_args`.
        given: Names of all options that are given to the setting, in whichever place.

    Raises:
        UserError: As `check_parts`.
    """
    part = PARTS[setting]
    if path in part.words or (not path.isidentifier() and _is_file(path)):
        return
    kinds = " or ".join(map(_public, part.bases))
    if "." not in path:
        ours = [*part.words, *_classes_of(part)]
        known = [*ours, *(each.__name__ for base in part.bases for each in _subclasses(base))]
        if path not in known:
            raise UserError(
                f"{setting}={path!r} is unknown.{did_you_mean(path, known)} Give"
                f" {', '.join([*ours, f'or the class path of a {kinds}'])}, such as"
                " my_module.MyClass."
            )
        return
    found = import_class_path(path, setting)
    if not inspect.isclass(found):
        if not callable(found):
            raise UserError(f"{setting}={path!r} is a {type(found).__name__}, not a class.")
        return
    if not any(_is_kind(found, base) for base in part.bases):
        raise UserError(
            f"{setting}={path!r} is not a subclass of {kinds}: derive the class from it."
        )
    base = next(base for base in part.bases if _is_kind(found, base))
    # Classes that come with a package are tested there.
    if not found.__module__.startswith(("lit_pretrain.", "lightning.", "torch.")):
        where = f"{setting}={path!r}"
        _check_methods(where, found, base, part)
        first = 1 if base is torch.optim.Optimizer else 0  # the parameters, whatever their name
        _check_options(where, found, options, given, skip=first)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:
        return False


def _is_kind(found: type, base: type) -> bool:
    """Tell whether a class is a subclass, or of a protocol has one of the methods."""
    if not getattr(base, "_is_protocol", False):
        return issubclass(found, base)
    return any(hasattr(found, name) for name in _methods(base))


def _methods(protocol: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if name[0] != "_"]


def _public(base: type) -> str:
    """Return the shortest path at which a class can be imported."""
    parts = base.__module__.split(".")
    homes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    home = next(home for home in homes if hasattr(sys.modules[home], base.__name__))
    return f"{home}.{base.__name__}"


def _classes_of(part: OwnPart) -> list[str]:
    """Name the classes of ours that a setting takes without their module."""
    return [
        name
        for name in getattr(part.home, "__all__", ())
        if inspect.isclass(each := getattr(part.home, name))
        and any(_is_kind(each, base) for base in part.bases)
        and not inspect.isabstract(each)
        and each not in part.bases
    ]


def _subclasses(base: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(base)
    for each in subclasses:
        if not inspect.isabstract(each) and each.__name__[0] != "_":
            yield each
        yield from _subclasses(each)


# ------------------------------------------------------------------ methods


def _check_methods(where: str, found: type, base: type, part: OwnPart) -> None:
    """Check that a class has the methods of its base, with the same arguments."""
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if getattr(base, "_is_protocol", False):
        missing += [name for name in _methods(base) if not hasattr(found, name)]
    missing += [
        name
        for name in part.own
        if hasattr(base, name) and getattr(found, name) is getattr(base, name)
    ]
    if missing:
        raise UserError(
            f"{where} lacks {', '.join(_written(base, name) for name in missing)}: define what"
            f" {_public(base)} declares."
        )
    for name, method in inspect.getmembers(found, inspect.isfunction):
        declared = inspect.getattr_static(base, name, None)
        if inspect.isfunction(declared) and method is not declared and name[0] != "_":
            if name == "step" and base is torch.optim.Optimizer:
                check_call(f"{where}: step", method, "self", "closure")
            else:
                keywords = [
                    each.name
                    for each in inspect.signature(declared).parameters.values()
                    if each.kind is each.KEYWORD_ONLY and each.default is each.empty
                ]
                names = _required(declared, base)
                check_call(f"{where}: {name}", method, *names, keywords=keywords)
        elif base is Callback and name.startswith("on_") and declared is None:
            hooks = [hook for hook in dir(Callback) if hook.startswith("on_")]
            if near := did_you_mean(name, hooks, cutoff=0.8):
                raise UserError(f"{where}: Lightning never calls {name}.{near}")


def _check_options(
    where: str, found: type, options: Mapping[str, Any], given: Collection[str], *, skip: int
) -> None:
    """Check that a constructor takes the options of the part and is given all that it needs.

    Args:
        where: Names the part.
        found: Its class.
        options: Its own options.
        given: Names of all options that are given, in whichever place.
        skip: Leading arguments that are no options.
    """
    parameters = list(inspect.signature(found).parameters.values())
    variable = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = {
        each.name: each
        for each in parameters[skip:]
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }
    for name in options if not variable else ():
        if name not in named:
            raise UserError(
                f"{where} has no option {name!r}.{did_you_mean(name, named)} It takes"
                f" {', '.join(named) or 'none'}."
            )
    missing = [
        name for name, each in named.items() if each.default is each.empty and name not in given
    ]
    if missing:
        raise UserError(f"{where} needs the options {', '.join(missing)}: give them, or defaults.")


def _written(base: type, name: str) -> str:
    """Write a member of a base as it is to be defined."""
    declared = getattr(base, name)
    if not callable(declared):
        return f"the property {name}"
    return f"the method {name}({', '.join(inspect.signature(declared).parameters)})"


def _required(declared: Any, base: type) -> Iterable[str]:
    """Name the arguments with which a method of a base is called: those of a Logger all."""
    for name, each in inspect.signature(declared).parameters.items():
        positional = each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        if positional and (each.default is each.empty or base is Logger):
            yield name


# ------------------------------------------------------------------ constructors


def check_constructors(config: Namespace) -> None:
    """Find out which part of a parsed config cannot be made, after jsonargparse has failed to.

    Raises:
        UserError: Names the part whose constructor raises, and what it raised.
    """
    for setting in PARTS:
        value = config.get(setting)
        for spec in value if isinstance(value, list) else [value]:
            if not isinstance(spec, Namespace) or spec.get("class_path") is None:
                continue
            bare = setting == "model.optimizer" and not issubclass(
                import_class_path(spec.class_path, setting), OptimizerRecipe
            )
            if not bare:  # which would need the parameters
                instantiate(spec, setting)
