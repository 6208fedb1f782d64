"""Arguments: what is settled about a command line before jsonargparse reads it."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import check_references, parse_yaml, read_yaml

_CONFIG = ("-c", "--config")
_NO_VALUE = re.compile(r"-h|--help(=.*)?|--print_config(=.*)?")
_MARK = "\ufdd3"
"""A Unicode noncharacter, which stands within the `${` of free text while configs are resolved."""
PLACES = frozenset("fork from local_runs out path resume run runs".split())
"""Options, by the last part of their names, that are places on a disk wherever they stand."""


class Config(NamedTuple):
    """A file that a command line names with --config."""

    path: str
    content: dict[str, Any]


def split_configs(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the values of --config from all other arguments, both in their order."""
    configs, others = [], []
    rest = iter(args)
    for arg in rest:
        if arg in _CONFIG:
            configs.append(next(rest, ""))
        elif arg.startswith("--config="):
            configs.append(arg.removeprefix("--config="))
        else:
            others.append(arg)
    return configs, others


def read_configs(args: Sequence[str]) -> list[Config]:
    """Read the files that a command line names with --config, in their order.

    What is no file is left to the parser, which takes YAML in place of a path, too.

    Raises:
        UserError: A file cannot be read, is not strict YAML (`plain_data.py`), or holds no mapping.
    """
    files = [path for path in split_configs(args)[0] if is_file(path)]
    found = [Config(path, read_yaml(path)) for path in files]
    for path, content in found:
        if not isinstance(content, dict):
            raise UserError(
                f"{path} holds {'nothing' if content is None else type(content).__name__}; a config"
                " is a mapping of options: `name: value` in each line"
            )
    check_references([content for _, content in found])
    return found


def is_file(path: str) -> bool:
    """Tell whether a value of --config names a file; it may also be YAML."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # YAML in place of a path: too long for one, or with a NUL
        return False


def holds(content: Any, name: str) -> bool:
    """Tell whether a config gives an option, by dotted name."""
    for key in name.split("."):
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def help_topic(args: Sequence[str]) -> str | None:
    """Find what a command line asks help for: "" for one page; None where it asks for none.

    The dispatcher has written `--help TOPIC` as one argument (`verb.py`).
    """
    for arg in args:
        if arg in ("-h", "--help"):
            return ""
        if arg.startswith("--help="):
            return arg.removeprefix("--help=")
    return None


def given_class(name: str, args: Sequence[str]) -> str | None:
    """Find the class that a command line or its configs give to an option, the last one winning.

    Args:
        name: Of the option, dotted.
        args: Command line.
    """
    found: Any = None
    for config in read_configs(args):
        content: Any = config.content
        for key in name.split("."):
            content = content.get(key) if isinstance(content, Mapping) else None
        found = content or found
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        option, equals, value = arg.partition("=")
        if option in (f"--{name}", f"--{name}+", f"--{name}.class_path"):
            found = value if equals else following
    if isinstance(found, str) and found.startswith(("{", "[")):
        found = parse_yaml(found, f"--{name}")
    if isinstance(found, list) and found:
        found = found[-1]
    if isinstance(found, Mapping):
        found = found.get("class_path")
    return found if isinstance(found, str) else None


# ------------------------------------------------------------------ the run


def name_run(args: Sequence[str], *, as_option: bool) -> list[str]:
    """Take the run by --run and by its place, whichever way the verb declares it.

    Args:
        args: Every option has one value, after a space or `=`.
        as_option: Whether the verb declares --run; otherwise its first positional argument is run.

    Raises:
        UserError: The run is given both ways.
    """
    named: list[str] = []
    others: list[str] = []
    places: list[int] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--run":
            named.append(next(rest, ""))
        elif arg.startswith("--run="):
            named.append(arg.removeprefix("--run="))
        elif not arg.startswith("-"):
            places.append(len(others))
            others.append(arg)
        else:
            others.append(arg)
            if "=" not in arg and not _NO_VALUE.fullmatch(arg):
                others.append(next(rest, ""))
    if "" in named:
        raise UserError("--run is empty; give a run folder such as runs/NAME, or a checkpoint")
    if not as_option:
        return [*named[-1:], *others]
    if places and named:
        raise UserError(
            f"the run is given twice: {others[places[0]]} and --run {named[-1]}; keep one of them"
        )
    if places:
        return [f"--run={others.pop(places[0])}", *others]
    return [*(f"--run={value}" for value in named[-1:]), *others]


# ------------------------------------------------------------------ free text


def mark_literal(value: Any) -> Any:
    """Mark every `${` of a plain value as text, which interpolation leaves alone."""
    return _with_texts(value, lambda text: text.replace("${", f"${_MARK}{{"))


def unmark(value: Any) -> Any:
    """Return a parsed value without the marks; namespaces are changed in place."""
    if isinstance(value, Namespace):
        for key, item in list(vars(value).items()):
            setattr(value, key, unmark(item))
        return value
    return _with_texts(value, lambda text: text.replace(f"${_MARK}{{", "${"))


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_with_texts(key, change): _with_texts(item, change) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(
            unmark(item) if isinstance(item, Namespace) else _with_texts(item, change)
            for item in value
        )
    return value


# ------------------------------------------------------------------ places


def expand_home(value: Any, name: str = "") -> Any:
    """Put the home directory in place of a leading tilde where a parsed option is a place.

    Libraries do not agree on the tilde: TensorBoard's files would go home and the run's into a
    folder called ~. Namespaces are changed in place.

    Args:
        value: Parsed options, or the value of one.
        name: The option's own name, without the groups it lies in.
    """
    if isinstance(value, Namespace):
        for key, item in list(vars(value).items()):
            setattr(value, key, expand_home(item, key))
        return value
    if type(value) is dict:
        return {key: expand_home(item, str(key)) for key, item in value.items()}
    if isinstance(value, str) and name in PLACES and value.startswith("~/"):
        return os.path.expanduser(value)
    return value


# ------------------------------------------------------------------ options in place of others


def replaced_options(
    args: Sequence[str],
    configs: Sequence[Config],
    rivals: Sequence[Sequence[str]],
    *,
    tell: bool = True,
) -> list[str]:
    """Find what earlier files say and a later file or the command line says otherwise.

    Of options that say the same thing in several ways, the last file that gives any of them
    replaces those of earlier files, and the command line replaces all files.

    Args:
        args: The command line.
        configs: Its files.
        rivals: Groups of options of which one may be given, by dotted name without `init_args`.
        tell: Say each replacement on standard error.

    Returns:
        Further arguments, which take back what was replaced.
    """
    layers = [(config.path, dict(_given(config.content))) for config in configs]
    layers.append(("the command line", dict(_given_as_options(split_configs(args)[1], rivals))))
    back = []
    for group in rivals:
        stated = [
            (place, {name: value for name, value in names.items() if _plain_name(name) in group})
            for place, (_, names) in enumerate(layers)
        ]
        stated = [(place, names) for place, names in stated if names]
        if not stated:
            continue
        last, winners = stated[-1]
        kept = {_plain_name(name) for name in winners}
        for place, names in stated[:-1]:
            if _names_class([names for _, names in layers[place + 1 :]], group[0]):
                continue  # another class has other options; those of the file go with its own
            for name, value in names.items():
                if _plain_name(name) not in kept:
                    new = next(iter(winners))
                    if tell:
                        _say(
                            f"{new}: {_shown(winners[new])} of {layers[last][0]} replaces {name}:"
                            f" {_shown(value)} of {layers[place][0]}"
                        )
                    back.append(f"--{name}=null")
    return back


def _names_class(layers: Sequence[Mapping[str, Any]], option: str) -> bool:
    """Tell whether a layer names the class whose option this is."""
    group = option.rpartition(".")[0]
    return any(
        isinstance(names.get(group), str) or f"{group}.class_path" in names for names in layers
    )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _say(message: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once for all processes of a run
        print(message, file=sys.stderr)


def _plain_name(name: str) -> str:
    return name.replace(".init_args.", ".")


def _given(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the options in a mapping, by dotted name, but for those without a value."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            name = f"{prefix}{key}"
            if value is not None:
                yield name, value
            yield from _given(value, f"{name}.")


def _given_as_options(
    args: Sequence[str], rivals: Sequence[Sequence[str]]
) -> Iterator[tuple[str, Any]]:
    groups = {option.partition(".")[0] for group in rivals for option in group if "." in option}
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("--"):
            continue
        name, equals, value = arg[2:].partition("=")
        if not equals:
            value = next(rest, "")
        if value.startswith("{") and name.partition(".")[0] in groups:
            yield from _given({name: parse_yaml(value, f"--{name}")})
        elif value != "null":
            yield name, value
