"""Parser: jsonargparse as every verb uses it, with the nearest valid name for a misspelt one."""

import importlib
import inspect
import pkgutil
import re
import sys
from argparse import Action
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypedDict, TypeVar

import yaml
from docstring_parser import DocstringStyle
from jsonargparse import (
    ArgumentParser,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)
from jsonargparse._actions import _ActionConfigLoad
from yaml import YAMLError

from lit_pretrain.cli.command.arguments import (
    Config,
    expand_home,
    help_topic,
    holds,
    is_file,
    mark_literal,
    name_run,
    read_configs,
    replaced_options,
    split_configs,
    unmark,
)
from lit_pretrain.cli.command.help_page import (
    HelpOption,
    Sections,
    Wanted,
    fields_elsewhere,
    help_page,
    list_options,
)
from lit_pretrain.cli.command.other_names import exactly_meant, meant_options
from lit_pretrain.cli.command.verb import show_page
from lit_pretrain.cli.command.wrong_value import wrong_value
from lit_pretrain.errors import did_you_mean, nearest
from lit_pretrain.plain_data import (
    boolean_words,
    check_yaml,
    escape_references,
    read_text,
    yaml_mistake,
)

MODE = "omegaconf+"
# What follows keeps `--help` below half a second: one style of docstrings is tried and not four;
# and jsonargparse's loader of this mode is that of YAML, but would import omegaconf, which only
# `${...}` needs.
set_parsing_settings(
    docstring_parse_style=DocstringStyle.GOOGLE, docstring_parse_attribute_docstrings=True
)
_load_yaml = get_loader("yaml")


def _load_strictly(text: str) -> Any:
    """Load a config, or the value of an option, but for what `check_yaml` refuses."""
    check_yaml(text)
    value = _load_yaml(text)
    # A comment alone is nothing in a file; as the value of an option it is text.
    return text if value is None else value


set_loader(MODE, _load_strictly, (YAMLError,))

# How jsonargparse says that it does not know a name. Within a list or mapping of configs it names
# the class instead of the group.
_UNKNOWN = (
    re.compile(r"class_path '(?P<owner>[\w.]+)':\s+Option '(?P<name>[\w.]+)' is not accepted"),
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"Option '(?P<name>[\w.]+)' is not accepted"),
    re.compile(r"[Uu]nrecognized arguments: (?P<name>\S+)"),
)
_NO_CONFIG = re.compile(r'Parser key "config": (File does not exist|Path is not a file)')
_REQUIRED = re.compile(r"(?<=the following arguments are required: ).+")
# How it says that a class path leads nowhere: by its last part, or by a module before that.
_NOWHERE = (
    re.compile(r"module '(?P<parent>[\w.]+)' has no attribute '(?P<name>\w+)'"),
    re.compile(r"No module named '(?P<parent>[\w.]+)\.(?P<name>\w+)'"),
)
_PARSER_KEY = re.compile(r'Parser key "(?P<name>[\w.]+)"')
_BOOLEAN_VALUE = re.compile(r"(?:Got|Given) value: .*\b(?:True|False)\b")
_NO_PATH = re.compile(r"Expected a dot import path string: (?P<name>\w+)(?![\w.])")
_HOMES = (
    "lit_pretrain.optim",
    "lit_pretrain.objective",
    "lit_pretrain.data",
    "lit_pretrain.rollout",
)
"""Where the classes are that an option may name without their module."""

Returned = TypeVar("Returned")

_BOOLEANS = frozenset({"true", "false", "yes", "no"})


class VerbParser(ArgumentParser):
    """A parser of jsonargparse that suggests the nearest known key for an unknown one.

    `-` in a name is `_`; options win over files, wherever they stand; and what is typed is taken
    literally, `${...}` included, which only files interpolate.
    """

    rivals: Sequence[Sequence[str]] = ()
    """Groups of options that say the same thing in several ways: the last layer that gives one of a
    group replaces those of earlier layers."""
    first_page: Sections | None = None
    """What `--help` shows, where not all options fit on one page."""
    hidden: Collection[str] = ()
    """Options that no help or hint names, because the verb refuses them."""
    beneath: Sequence[Config] = ()
    """Layers below all files, such as the config of a run that is measured."""

    # argparse declares overloads, and jsonargparse itself does not keep to them.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Any:
        """Parse; `--keep-rejects` is `--keep_rejects`, and a bare `--verify` is `--verify true`.

        Raises:
            UserError: A file given with --config cannot be read, or the run is given twice.
        """
        if args is None or not self.exit_on_error:  # within a parse
            return super().parse_args(args, *rest, **options)
        given = self._given = self._as_declared(list(args))
        topic = help_topic(given)
        if topic is not None:
            show_page(self, lambda: help_page(self, topic, given, self.first_page))
            sys.exit(0)
        given = self._named_run(given)
        configs, others = split_configs(given)
        files = read_configs(given)
        # A parse without defaults only asks what was given.
        tell = options.get("defaults", True)
        others += replaced_options(given, [*self.beneath, *files], self.rivals, tell=tell)
        ordered = [f"--config={config}" for config in configs] + mark_literal(others)
        try:
            parsed = expand_home(unmark(self._parse_classes(ordered, *rest, **options)))
        except UnicodeDecodeError as error:
            self.error(f"a file named by an option is not UTF-8: {error}")
        # By name of the module: omegaconf is only imported where a file has a reference.
        except Exception as error:
            if not type(error).__module__.startswith("omegaconf."):
                raise
            self.error(self._interpolation_mistake(files, error))
        self._check_groups(parsed)
        return parsed

    def _check_groups(self, parsed: Any) -> None:
        """Refuse a plain value in place of a group of options, which jsonargparse lets through."""
        for action in self._actions:
            if not isinstance(action, _ActionConfigLoad) or action.dest not in parsed:
                continue
            value = parsed.get(action.dest)
            if value is None:
                self.error(
                    f"{action.dest} is empty: give its options, or leave it out for the defaults"
                )
            if not isinstance(value, Mapping | Namespace):
                option = next(
                    other.dest
                    for other in self._actions
                    if other.dest.startswith(f"{action.dest}.")
                )
                self.error(
                    f"{action.dest} is {value!r}, but it holds options, such as {option}: give"
                    " these below it, or leave it out for the defaults"
                )

    def _named_run(self, args: list[str]) -> list[str]:
        """Let a verb that takes a run take it by --run and by its place."""
        actions = self._actions
        declared = next((action for action in actions if action.dest == "run"), None)
        if declared is None:
            return args
        return name_run(args, as_option=bool(declared.option_strings))

    def _interpolation_mistake(self, files: Sequence[Config], error: Exception) -> str:
        key = str(getattr(error, "full_key", None) or "")
        where = [file.path for file in files if holds(file.content, key)]
        reason = str(error).partition("\n")[0]
        missing = re.fullmatch(r"Interpolation key '(.+)' not found", reason)
        hint = "" if missing is None else did_you_mean(missing[1], self._known_names())
        variable = re.search(r"Environment variable '(.+)' not found", reason)
        if variable is not None:
            reason = f"the environment variable {variable[1]} is not set"
            hint = f" Set it, or give a value for that case: ${{oc.env:{variable[1]},VALUE}}."
        return (
            f"{': '.join([*where[-1:], *filter(None, [key])])}: a reference ${{...}} cannot be"
            f" resolved: {reason}.{hint} Text that is no reference is written \\${{...}}"
        )

    def set_defaults(self, *mappings: dict[str, Any], **values: Any) -> None:
        """Set defaults, which are taken literally."""
        super().set_defaults(*map(mark_literal, mappings), **mark_literal(values))

    def format_help(self, *rest: Any) -> str:
        """Write the page that `--help` shows."""
        return f"{help_page(self, '', (), self.first_page)}\n"

    def dump(self, *arguments: Any, **options: Any) -> str:
        """Write a config as YAML; what --print_config prints can be read as a config again."""
        text: str = super().dump(*arguments, **options)
        # jsonargparse also calls this to resolve references, and then keeps the targets of links.
        printed = hasattr(self, "print_config") and options.get("skip_link_targets", True)
        if not printed or unmark(text).count("${") == 0:
            return text
        plain = escape_references(unmark(yaml.safe_load(text)))
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    def _parse_classes(self, args: list[str], *rest: Any, **options: Any) -> Any:
        """Parse, with its own defaults for every class that an option names.

        jsonargparse would keep the values of the class before it for all options of the same name,
        even defaults: `--model.optimizer AdamW` would silently train with the betas of MuonAdamW.
        So arguments that change a class are parsed again with the new class as the default, and
        without what a config file says of another class.
        """
        # It prints what the first parse has found, and exits.
        first = [arg for arg in args if not arg.startswith("--print_config")]
        self._changed = {}
        parsed = super().parse_args(first, *rest, **options)
        self._changed = self._changed_classes(parsed) if options.get("defaults", True) else {}
        if self._changed:
            options["namespace"] = self._defaults_of(self._changed)
        if self._changed or first != args:
            parsed = super().parse_args(args, *rest, **options)
        return parsed

    def parse_string(self, *args: Any, **options: Any) -> Any:
        """Parse the text of a config file; drop what it says of a class that is not used."""
        parsed = super().parse_string(*args, **options)
        for action, path in self._changed.items():
            value = parsed.get(action.dest)
            if is_class_spec(value) and _named(value["class_path"]) is not _named(path):
                parsed.pop(action.dest)
        return parsed

    _given: Sequence[str] = ()
    """The command line, for hints."""
    _changed: Mapping[Action, str] = MappingProxyType({})
    """Options whose class is not the default, with its path; known after a first parse."""

    def _changed_classes(self, parsed: Any) -> dict[Action, str]:
        changed = {}
        for action in self._actions:
            value, default = parsed.get(action.dest), action.default
            if is_class_spec(value) and not (
                is_class_spec(default)
                and _named(default["class_path"]) is _named(value["class_path"])
            ):
                changed[action] = value["class_path"]
        return changed

    def _defaults_of(self, classes: Mapping[Action, str]) -> Any:
        """Return the default of every option, of these ones with another class."""
        own = {action: action.default for action in classes}
        for action, path in classes.items():
            action.default = Namespace(class_path=path)  # type: ignore[no-untyped-call]  # no types
        defaults = self.get_defaults()
        for action, default in own.items():
            action.default = default
        return defaults

    def _as_declared(self, args: list[str]) -> list[str]:
        names = {f"--{name}" for name in self._known_names()}
        switches = {
            option
            for action in self._actions
            if getattr(action, "_typehint", None) is bool or getattr(action, "type", None) is bool
            for option in action.option_strings
        }
        declared = []
        for arg, following in zip(args, [*args, ""][1:], strict=True):
            name, equals, value = arg.partition("=")
            if (
                name.startswith("--")
                and name not in names
                and f"--{name[2:].replace('-', '_')}" in names
            ):
                name = f"--{name[2:].replace('-', '_')}"
            bare = name in switches and not equals and following.lower() not in _BOOLEANS
            declared.append(f"{name}=true" if bare else f"{name}{equals}{value}")
        return declared

    def refuse_unknown(self, args: Sequence[str]) -> None:
        """Stop at the first option whose group is not known, before the others have any effect."""
        self._given = list(args)
        groups = {name.split(".")[0] for name in self._known_names()}
        for arg in self._as_declared(list(args)):
            name = arg.partition("=")[0].removesuffix("+")
            if name.startswith("--") and name[2:].split(".")[0] not in groups:
                self.error(f"Unrecognized arguments: {arg}")
        # jsonargparse passes over an unknown section that is empty.
        for config in read_configs(args):
            for name in config.content:
                if name not in groups | {"from"}:
                    self.error(f"Option '{name}' is not accepted")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, with a hint for a misspelt name, and exit with 2.

        The usage of hundreds of options would help nobody.
        """
        if self.exit_on_error:
            message = unmark(_REQUIRED.sub(self._as_typed, message))
            program = self.prog
            self._refuse_value(message)
            if _NO_CONFIG.search(message):
                message = self._config_mistake()
            hint = f"{self._hint(message)}{self._yaml_hint(message)}"
            key, of_class = _PARSER_KEY.search(message), _UNKNOWN[0].search(message)
            if key is not None and of_class is not None:  # in ten lines of type hints
                name, owner = of_class["name"], of_class["owner"]
                message = f"{key['name']}: option {name!r} is not accepted by {owner}"
            print(
                f"error: {message}{hint}\n`{program} --help` lists the options.",
                file=sys.stderr,
            )
            sys.exit(2)
        super().error(message, ex)
        raise AssertionError("parser.error returned")

    def _refuse_value(self, message: str) -> None:
        """Stop with one line, if the message is about a value of the wrong type."""

        def listed(topic: str, given: Sequence[str] = self._given) -> Sequence[HelpOption]:
            return list_options(self, given, Wanted(topic=topic))

        found = wrong_value(message, listed, self._given, read_configs(self._given))
        if found is None:
            return
        text, name = found
        known = any(option.name.startswith(name) for option in listed(name, ()))
        foot = (
            f"`{self.prog} --help {name}` explains it."
            if known
            else f"`{self.prog} --help` lists the options."
        )
        print(f"error: {text}{self._yaml_hint(message)}\n{foot}", file=sys.stderr)
        sys.exit(2)

    def _config_mistake(self) -> str:
        """Say what a value of --config names that is no file, and which one may be meant."""
        path = Path(next(path for path in split_configs(self._given)[0] if not is_file(path)))
        if str(path) == ".":
            return "--config needs the path of a YAML file"
        if not path.is_dir():
            beside = [file.name for file in path.parent.glob("[!.]*.y*ml")]
            near = nearest(path.name, beside, cutoff=0.75)
            hint = f" Did you mean '{path.parent / near[0]}'?" if near else ""
            return f"--config {path} does not exist (relative paths start at {Path.cwd()}).{hint}"
        files = sorted(map(str, path.glob("[!.]*.y*ml")))
        inside = f"give one of its files: {', '.join(files[:5])}" if files else "give a YAML file"
        return f"--config {path} is a folder; {inside}"

    def _as_typed(self, names: re.Match[str]) -> str:
        """Name required options as they are typed, `--run`; positional arguments stay `run`."""
        known = self._known_names()
        return ", ".join(f"--{name}" if name in known else name for name in names[0].split(", "))

    def _hint(self, message: str) -> str:
        match = next(filter(None, (pattern.search(message) for pattern in _UNKNOWN)), None)
        if match is None:
            return _path_hint(message)
        place_hint = self._place_hint(match["name"]) if match.re is _UNKNOWN[-1] else None
        if place_hint is not None:
            return place_hint
        found = match.groupdict()
        dashes = "--" if found["name"].startswith("--") else ""
        key = found.get("group") or (_PARSER_KEY.search(message) or {"name": ""})["name"]
        name = ".".join(filter(None, [key, found["name"].lstrip("-").split("=")[0].rstrip("+")]))
        if found.get("owner"):
            known = [f"{key}.{field}".strip(".") for field in _parameters(found["owner"])]
        else:
            options = list_options(self, self._given)
            known = [option.name for option in options]
            known += [name for name in self._known_names() if name not in self.hidden]
        near = [repr(f"{dashes}{option}") for option in meant_options(name, known)]
        hint = f"\nDid you mean {' or '.join(near)}?" if near else ""
        elsewhere = fields_elsewhere(self)
        for option in exactly_meant(name, elsewhere.keys() - set(known))[:1]:
            hint += f"\nWith {elsewhere[option]} it is '{dashes}{option}'."
        return hint

    def _place_hint(self, word: str) -> str | None:
        """Say where a value belongs that no option takes; None if it is the name of an option."""
        given = list(self._given)
        option, equals, value = word.partition("=")
        places = [action.dest for action in self._actions if not action.option_strings]
        if option.removeprefix("--") in places and option.startswith("--"):
            return f"\nIt is given by its place: {self.prog} {' '.join(places).upper()}"
        if option == "--run":
            value = value if equals else (given[given.index(word) + 1 :] or [""])[0]
        elif word.startswith("-"):
            return None
        else:
            value = next((arg for arg in given if arg.split()[:1] == [word]), word)
        file = Path(value) / "config.yaml"
        if file.is_file():
            return f"\nThis verb reads the config of a run: --config {file}"
        if option == "--run":
            return None
        before = given[given.index(value) - 1] if value in given[1:] else ""
        if before.startswith("--") and before.endswith("=true"):  # a bare switch
            return f"\n{before.removesuffix('=true')} takes true or false."
        return f"\nThe name of an option stands before its value: --NAME {value!r}"

    def _yaml_hint(self, message: str) -> str:
        """Say what YAML made of a value: of the word `off`, and of options that are not YAML."""
        configs, others = split_configs(getattr(self, "args", ()))  # jsonargparse sets it
        hints = []
        key = _PARSER_KEY.search(message)
        if key is not None and _BOOLEAN_VALUE.search(message):
            hints = [
                f"{path}, {hint}"
                for path in configs
                if Path(path).is_file()
                for name, hint in boolean_words(read_text(path))
                if name.startswith(key["name"]) or key["name"].startswith(name)
            ]
        for arg in others:
            name, _, value = arg.rpartition("=") if arg.startswith("--") else ("", "", arg)
            if value[:1] in ("{", "["):
                try:
                    check_yaml(value)
                except YAMLError as error:
                    hints.append(f"{name or value}: {yaml_mistake(error)}")
        return "".join(f"\n{hint}" for hint in hints)

    def _known_names(self) -> list[str]:
        names: list[str] = []
        for action in self._actions:
            names += [option[2:] for option in action.option_strings if option.startswith("--")]
        return names


def _path_hint(message: str) -> str:
    """Find the nearest class or module, for a class path that leads nowhere."""
    match = next(filter(None, (pattern.search(message) for pattern in _NOWHERE)), None)
    if match is None:
        return _name_hint(message)
    parent = importlib.import_module(match["parent"])
    classes = [name for name, value in vars(parent).items() if inspect.isclass(value)]
    modules = [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    name = match["name"]
    near = nearest(name, classes, cutoff=0.75) or nearest(name, modules, cutoff=0.75)
    return f"\nDid you mean '{match['parent']}.{near[0]}'?" if near else ""


def _name_hint(message: str) -> str:
    """Find the nearest class of ours, for a name without a module."""
    match = _NO_PATH.search(message)
    if match is None:
        return ""
    named = ((home, vars(importlib.import_module(home))) for home in _HOMES)
    homes = {
        name: home
        for home, members in named
        for name, value in members.items()
        if inspect.isclass(value)
    }
    near = nearest(match["name"], homes)
    return f"\nDid you mean '{homes[near[0]]}.{near[0]}'?" if near else ""


def _parameters(path: str) -> list[str]:
    """Return the names of the parameters of a class."""
    return list(inspect.signature(_named(path)).parameters)


def _named(path: str) -> Any:
    """Import what a class path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def is_class_spec(value: Any) -> bool:
    """Tell whether a parsed value names a class, with its options beside it."""
    return isinstance(value, Namespace | dict) and "class_path" in value


class ParserOptions(TypedDict):
    """Settings of a parser of jsonargparse."""

    prog: str
    allow_abbrev: bool
    parser_mode: str


def parser_options(verb: str) -> ParserOptions:
    """Return the settings that all parsers share."""
    return {
        "prog": f"lit_pretrain {verb}",
        "allow_abbrev": False,
        "parser_mode": MODE,
    }


def make_parser(verb: str, description: str = "") -> VerbParser:
    """Make a parser with `--config`, `--print_config` and `${...}` interpolation.

    `--config` may be repeated; later files win over earlier ones.
    """
    parser = VerbParser(description=description, **parser_options(verb))
    parser.add_argument(
        "-c",
        "--config",
        action="config",
        help="A YAML file of options; may be given again, later files win.",
    )
    return parser


def run_function(
    verb: str,
    description: str,
    function: Callable[..., Returned],
    argv: list[str],
    *,
    as_positional: bool = False,
) -> Returned:
    """Call a function with the options that its signature declares, read from the command line.

    Args:
        verb: What the user typed after `lit_pretrain`.
        description: First lines of its help.
        function: Its docstring explains the options.
        argv: The arguments.
        as_positional: Whether parameters without a default are given by their place.
    """
    parser = make_parser(verb, description)
    parser.add_function_arguments(function, as_positional=as_positional)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return function(**options)


# ---------------------------------------------------------------- before there is a parser


def raw_option(args: list[str], name: str) -> str | None:
    """Find the value of an option in raw arguments, the last one winning."""
    found = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(name + "="):
            found = arg.split("=", 1)[1]
    return found


def raw_switch(args: list[str], name: str) -> bool:
    """Tell whether raw arguments set a switch, which needs no value."""
    value = "false"
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        if arg == name:
            value = following.lower() if following.lower() in _BOOLEANS else "true"
        elif arg.startswith(f"{name}="):
            value = arg.partition("=")[2].lower()
    return value in ("true", "yes")


def raw_parent(args: list[str]) -> str | None:
    """Find the parent in raw arguments: in --from, or `from` in a file given with --config."""
    named = [config.content["from"] for config in read_configs(args) if config.content.get("from")]
    return raw_option(args, "--from") or (named[-1] if named else None)


def asks_only(args: list[str]) -> bool:
    """Tell whether the arguments ask for help or for the config, and nothing is to be run."""
    return help_topic(args) is not None or any(arg.startswith("--print_config") for arg in args)
