"""Help pages: what `VERB --help` prints on one page, and in full for all options or for some.

An option that takes a class, such as `--model.optimizer`, is followed by the options of the class
that is given, or else of the default.
"""

import argparse
import copy
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse._actions import _ActionConfigLoad, _ActionHelpClassPath
from jsonargparse._optionals import get_docstring_parse_options
from jsonargparse._typehints import ActionTypeHint, get_all_subclass_paths

from lit_pretrain.class_path import import_class_path
from lit_pretrain.cli.command.arguments import given_class
from lit_pretrain.cli.command.other_names import meant_options
from lit_pretrain.errors import UserError

LINES, COLUMNS = 60, 100
"""The most that a first page has."""
INDENT = 36
"""Where the text of an option begins."""
DEPTH = 3
"""How many classes within classes are opened: deeper ones are named by their class alone."""

_ELIDED = {"[": "[...]", "{": "{...}"}
_TITLES = {"positional arguments": "arguments", None: "options"}
_TEXTS = {
    "help": "Show this page; `--help all` lists everything.",
    "print_config": "Print the whole config, which --config reads, and exit.",
    "config": "A YAML file of options; may be given again, later files win.",
}
"""What is said of the options that jsonargparse adds."""

Sections = Mapping[str, Sequence[str]]
"""Heading -> options of a first page. An option that a verb does not have is left out, and
`group.*` stands for the names of those options of a group that no other entry names."""


class HelpOption(NamedTuple):
    """An option as a page shows it."""

    name: str
    """Dotted, without dashes: model.optimizer.lr."""
    flag: str
    """As it is typed: --model.optimizer.lr, or only the name where the place decides. What stands
    within a list cannot be typed as an option: filters: class_path.
    """
    kind: str
    """What it takes: INT, TEXT, true|false; empty for a switch."""
    default: str
    """As it would be typed; empty where there is none."""
    text: str
    group: str
    classes: Sequence[str] = ()
    """The known classes that it takes."""

    def shown(self, limit: int) -> str:
        """Write the option with its default, or with the kind of value it takes.

        A default longer than the limit becomes a word.
        """
        value = self.default or self.kind
        if len(value) > limit:
            value = _ELIDED.get(self.default[:1], "VALUE")
        return f"{self.flag} {value}".rstrip()


class Wanted(NamedTuple):
    """Which classes to open: reading the docstrings of all of them takes longer than a page does.

    Both None: all of them.
    """

    names: Sequence[str] | None = None
    """Options of a page: open what they lie in."""
    topic: str | None = None
    """The beginning of names."""

    def opens(self, name: str) -> bool:
        """Tell whether the options within an option may be wanted."""
        if self.topic is not None:
            return name.startswith(self.topic) or self.topic.startswith(f"{name}.")
        return self.names is None or any(other.startswith(f"{name}.") for other in self.names)


def list_options(
    parser: Any, given: Sequence[str] = (), wanted: Wanted = Wanted()
) -> list[HelpOption]:
    """List the options of a parser, with those of the classes that its options take.

    Args:
        parser: Of jsonargparse. Its attribute `hidden`, if it has one, names what is left out.
        given: Arguments, which may name other classes than the defaults.
        wanted: Which classes to open.
    """
    hidden: Collection[str] = getattr(parser, "hidden", ())
    return [
        option
        for group in parser._action_groups
        for action in group._group_actions
        for option in _with_fields(action, _TITLES.get(group.title, group.title), given, wanted)
        if option.name not in hidden
    ]


def help_page(
    parser: Any, topic: str, given: Sequence[str] = (), sections: Sections | None = None
) -> str:
    """Write the page for a verb's options.

    Args:
        parser: Of the verb.
        topic: "": one page. "all": every option in full. Or the beginning of options' names.
        given: The other arguments, which may name classes.
        sections: What the one page holds, where not all options fit on it.

    Raises:
        UserError: No option begins so.
    """
    if topic in ("", "all"):
        named = sections if topic == "" else None
        listed = None if named is None else [name for names in named.values() for name in names]
        options = list_options(parser, given, Wanted(names=listed))
        return _page(parser, options, sections, in_full=topic == "all")
    wanted = topic.removeprefix("--")
    options = list_options(parser, given, Wanted(topic=wanted))
    chosen = [option for option in options if option.name.startswith(wanted)]
    if not chosen:
        options = list_options(parser, given)
        names = meant_options(wanted, [option.name for option in options])
        chosen = [option for option in options if option.name in names]
    if not chosen:
        raise UserError(
            f"{parser.prog} has no option that begins with {wanted!r}; `{parser.prog} --help all`"
            " lists them"
        )
    lines = _in_full(chosen)
    for option in chosen:
        if option.name == wanted and len(option.classes) > 1:
            known = ", ".join(option.classes)
            lines += ["", *_wrapped(f"Classes known for {option.flag}: {known}.", 0)]
    return "\n".join(lines).lstrip("\n")


def _page(
    parser: Any, options: Sequence[HelpOption], sections: Sections | None, *, in_full: bool
) -> str:
    """Write usage, description and options: in full if that fits or is wanted."""
    head = [_usage(parser.prog, options), "", *_wrapped(parser.description or "", 0)]
    lines = [*head, *_in_full(options)] if in_full or sections is None else []
    if lines and (in_full or len(lines) <= LINES):
        return "\n".join(lines)
    return "\n".join([*head, *_short(options, sections), "", *_foot(parser.prog)])


def first_sentence(text: str) -> str:
    """Cut a text after its first sentence."""
    return re.split(r"(?<!\be\.g)\.\s+(?=[A-Z0-9`\"(])", text, maxsplit=1)[0].removesuffix(".")


# ------------------------------------------------------------------ lines


def _columns() -> int:
    """Measure the width of the terminal, at most a page's."""
    return max(60, min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns))


def _usage(program: str, options: Sequence[HelpOption]) -> str:
    places = [
        f"[{option.name}]" if option.default else option.name
        for option in options
        if option.flag == option.name
    ]
    return " ".join(["usage:", program, *places, "[options]"])


def _foot(program: str) -> list[str]:
    return _wrapped(
        f"`{program} --help all` lists every option with its whole text, `--help NAME` those whose"
        " names begin so. Options are shown with their defaults, or with the kind of value they"
        " take.",
        0,
    )


def _wrapped(text: str, indent: int) -> list[str]:
    """Wrap a text, paragraph by paragraph."""
    return [
        line
        for paragraph in re.split(r"\n\s*\n", text.strip())
        for line in [
            *textwrap.wrap(
                " ".join(paragraph.split()), _columns(), initial_indent=" " * indent,
                subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False,
            ),
            "",
        ]
    ][:-1]  # fmt: skip


def _in_full(options: Sequence[HelpOption]) -> list[str]:
    lines: list[str] = []
    group = None
    for option in options:
        if option.group != group:
            group = option.group
            lines += ["", *_wrapped(f"{group}:", 0)]
        text = option.text
        begin = f"  {option.shown(48)}"
        if option.kind and not begin.endswith(f" {option.kind}"):
            text = f"{text} ({' | '.join(option.kind.split('|'))})".strip()
        wrapped = _wrapped(text, INDENT) if text else []
        if wrapped and len(begin) <= INDENT - 2:
            wrapped[0] = begin.ljust(INDENT) + wrapped[0].lstrip()
            begin = ""
        lines += [*([begin] if begin else []), *wrapped]
    return lines


def _short(options: Sequence[HelpOption], sections: Sections | None) -> list[str]:
    """Write one line for each option, with the beginning of its text."""
    named = {option.name: option for option in options}
    if sections is None:
        sections = {}
        for option in options:
            if "[]" not in option.name:
                sections[option.group] = [*sections.get(option.group, []), option.name]
    listed = {name for names in sections.values() for name in names}
    lines = []
    for heading, names in sections.items():
        body: list[str] = []
        for name in names:
            if name in named:
                body.append(_one_line(named[name]))
            elif name.endswith(".*"):
                group = name[:-1]
                body += _names_alone(
                    group,
                    [
                        other.removeprefix(group) for other in named
                        if other.startswith(group) and other not in listed
                        and "." not in other.removeprefix(group)
                    ],
                )  # fmt: skip
        if body:
            lines += [*_wrapped(f"{heading}:", 0), *body]
    return ["", *lines]


def _one_line(option: HelpOption) -> str:
    begin = f"  {option.shown(23)}".ljust(INDENT - 1)
    room = _columns() - len(begin) - 2
    return f"{begin}  {textwrap.shorten(first_sentence(option.text), room, placeholder=' …')}"


def _names_alone(group: str, names: Sequence[str]) -> list[str]:
    """Write the names of options that have no line of their own: `--model.net.{norm, init}`."""
    if not names:
        return []
    listed = f"--{group}{{{', '.join(names)}}}"
    return textwrap.wrap(
        listed, _columns(), initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def fields_elsewhere(parser: Any) -> dict[str, str]:
    """Name the options that only other classes of ours have, and the class, by its short name.

    Only options whose default is a class are looked at, such as `model.optimizer`.
    """
    found: dict[str, str] = {}
    for action in parser._actions:
        own = _spec_of(action.default).get("class_path")
        if own is None:
            continue
        for path in get_all_subclass_paths(action._typehint):
            if path != own and path.startswith("lit_pretrain."):
                owner = import_class_path(path, action.dest)
                for field in _fields_of(owner, action._typehint):
                    name = f"{action.dest}.{field.dest}"
                    found.setdefault(name, f"--{action.dest} {path.rpartition('.')[2]}")
    return found


@contextmanager
def field_texts(*, read: bool) -> Iterator[None]:
    """Read the texts below the fields of classes, or leave them out, while parsers are made.

    They take a quarter of the time between the import of Lightning and the first line of `fit`, and
    only pages of help show them.
    """
    options = get_docstring_parse_options()  # type: ignore[no-untyped-call]  # no types
    before: bool = options["attribute_docstrings"]
    set_parsing_settings(docstring_parse_attribute_docstrings=read)
    try:
        yield
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=before)


# ------------------------------------------------------------------ options


def _with_fields(
    action: argparse.Action,
    group: str,
    given: Sequence[str],
    wanted: Wanted,
    prefix: str = "",
    depth: int = 0,
) -> Iterator[HelpOption]:
    """Yield the option of an action, followed by those of its class."""
    if action.help == argparse.SUPPRESS or isinstance(
        action, _ActionConfigLoad | _ActionHelpClassPath
    ):
        return
    name = f"{prefix}{action.dest}"
    typehint = getattr(action, "_typehint", None)
    known = [] if typehint is None else get_all_subclass_paths(typehint)
    flags = [option for option in action.option_strings if not option.endswith("+")]
    spec = _spec_of(action.default)
    stated = given_class(name, given) if known else None  # of `--from DIR`, DIR is no class
    path = _resolved(stated, known) if stated else spec.get("class_path")
    if path and "." not in path:  # a word in place of a class, such as the accelerator `cpu`
        path = spec.get("class_path")
    fields = [item for item in _classes_in(typehint) if dataclasses.is_dataclass(item)]
    closed = fields[0] if len(fields) == 1 else None
    yield HelpOption(
        name=name,
        flag=_flag_of(name, flags),
        kind=_kind_of(action),
        default=""
        if action.nargs == 0 or (action.nargs in ("+", "*") and not action.default)
        else _typed(
            action.default, {"class_path": path} if path else {}, of_fields=closed is not None
        ),
        text=_TEXTS.get(name) or _plain(action.help or ""),
        group=group,
        classes=known,
    )
    if depth == DEPTH or typehint is None or not wanted.opens(name):
        return
    owner = import_class_path(path, f"--{name}") if path else closed
    if owner is None:
        return
    own = spec.get("init_args") or {} if path == spec.get("class_path") else {}
    for field in _fields_of(owner, typehint):
        if field.dest in own:
            field.default = own[field.dest]
        within = f"{name}{_step_into(typehint)}"
        yield from _with_fields(field, group, given, wanted, within, depth + 1)


def _flag_of(name: str, flags: Sequence[str]) -> str:
    if not flags:
        return name
    if "[]" in name:
        return f"{name.replace('[].', ': ', 1).replace('[].', ' ')}"
    short = [flag for flag in flags if not flag.startswith("--")]
    return ", ".join([*short, f"--{name}"])


def _step_into(typehint: Any) -> str:
    """Write what stands between an option and a field of its class, in a list or under a name."""
    origins = [get_origin(item) for item in (typehint, *get_args(typehint))]
    if any(inspect.isclass(origin) and issubclass(origin, Mapping) for origin in origins):
        return ".NAME."
    if any(origin in (list, tuple) for origin in origins) and not any(
        item is not NoneType and get_origin(item) is None
        for item in get_args(typehint)
        if get_origin(typehint) not in (list, tuple)
    ):
        return "[]."
    return "."


def _spec_of(default: Any) -> dict[str, Any]:
    """Find the class and its options that a default names; empty where it names none."""
    if isinstance(default, Namespace):
        default = default.as_dict()
    return default if isinstance(default, dict) and "class_path" in default else {}


def _resolved(name: str, known: Sequence[str]) -> str:
    """Complete the path of a class that may be named without its module."""
    return next((path for path in known if path.rpartition(".")[2] == name), name)


def _fields_of(owner: Any, typehint: Any) -> list[argparse.Action]:
    """List the options of a class, but for the arguments that a `Callable[[...], Class]` fills."""
    return [copy.copy(action) for action in _declared_fields(owner, _filled(owner, typehint))]


@cache
def _declared_fields(owner: Any, filled: int) -> list[argparse.Action]:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    with field_texts(read=True):
        parser.add_class_arguments(owner, skip={filled} if filled else set())
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def _filled(owner: Any, typehint: Any) -> int:
    """Count the first arguments of a class that the caller gives."""
    for item in (typehint, *get_args(typehint)):
        if get_origin(item) is Callable:
            arguments, made = get_args(item)
            if inspect.isclass(made) and inspect.isclass(owner) and issubclass(owner, made):
                return len(arguments)
    return 0


def _classes_in(typehint: Any) -> list[type]:
    if inspect.isclass(typehint) and get_origin(typehint) is None:
        return [typehint]
    return [found for item in get_args(typehint) for found in _classes_in(item)]


_SIMPLE: dict[Any, str] = {
    int: "INT",
    float: "FLOAT",
    str: "TEXT",
    bool: "true|false",
    Any: "VALUE",
}


def _kind_of(action: argparse.Action) -> str:
    """Describe what a value of an option looks like, in the words of a user."""
    if action.nargs == 0:
        return ""
    several = " ..." if action.nargs in ("+", "*") else ""
    return _kind_of_one(action) + several


def _kind_of_one(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    typehint = getattr(action, "_typehint", None)
    if typehint is None:
        read_by: Any = action.type
        if inspect.isfunction(read_by):  # a parser of one option: its name says what it reads
            return read_by.__name__.replace("_", " ").strip().upper()
        if "config" in action.dest and read_by is None:
            return "" if action.dest.startswith("print") else "FILE"
        return _SIMPLE.get(read_by, "TEXT")
    return _words_for(typehint)


def _words_for(typehint: Any) -> str:
    if typehint in _SIMPLE:
        return _SIMPLE[typehint]
    origin, arguments = get_origin(typehint), get_args(typehint)
    if origin is Literal:
        return "|".join(str(value).lower() if value is None else str(value) for value in arguments)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"{{NAME: {_words_for(arguments[-1])}}}" if arguments else "{NAME: VALUE}"
    if origin in (list, tuple, set) or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        return f"[{_words_for(arguments[0])}, ...]" if arguments else "[VALUE, ...]"
    if arguments and origin not in (type, Callable):
        kinds = [_words_for(item) for item in arguments if item is not NoneType]
        return "|".join(dict.fromkeys(kinds))
    if inspect.isclass(typehint) and dataclasses.is_dataclass(typehint):
        return "{NAME: VALUE}"
    is_class = ActionTypeHint.is_subclass_typehint(typehint)  # type: ignore[no-untyped-call]  # no types
    if origin is Callable or is_class:
        return "CLASS"
    return str(getattr(typehint, "__name__", "VALUE")).upper()


def _typed(default: Any, spec: Mapping[str, Any], *, of_fields: bool) -> str:
    """Write a default as one would type it; empty for none and for what is no plain value."""
    if spec:
        return str(spec["class_path"]).rpartition(".")[2]
    if default is None or default == argparse.SUPPRESS or callable(default):
        return ""
    if isinstance(default, dict | Namespace) and of_fields:  # they follow, with their defaults
        return "{...}"
    if isinstance(default, tuple | set):
        default = list(default)
    if isinstance(default, str) and default.isprintable():
        return default or '""'
    if isinstance(default, float):
        return f"{default:g}"
    if not isinstance(default, str | bool | int | list | dict):
        return ""
    try:
        text = yaml.safe_dump(default, default_flow_style=True, width=10_000)
    except yaml.YAMLError:  # it holds objects
        return ""
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _plain(text: str) -> str:
    """Strip a docstring's text of the roles and double ticks of Sphinx."""
    text = re.sub(r":\w+:`~?(?:[^`<]*\.)?([^`<.]+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").replace("%%", "%").split())
