"""Wrong values: say in one line what an option takes, where jsonargparse lists Python's types."""

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from lit_pretrain.cli.command.arguments import Config, holds
from lit_pretrain.cli.command.help_page import HelpOption, first_sentence
from lit_pretrain.errors import did_you_mean

_KEY = re.compile(
    r'^(?P<indent>[ -]*)Parser key "(?P<name>[\w.]+)"(?: element \d+)?:', re.MULTILINE
)
_OF_TYPE = re.compile(r"Expected (a |<class|typing)|Unable to load config|Invalid content in sub-")
_OF_ELSE = re.compile(r"Problem with given class_path|is not accepted|No module named|no attribute")
"""What has a message of its own."""
_OF_OURS = re.compile(r"Not of type [A-Z]\w+: (?P<said>.+)")
"""What a type of ours, such as FilterSpec, says of a value."""
_MISSING = re.compile(r"the following arguments are required: (?P<names>.+)")
_WHOLE = re.compile(r"Given value: (?!NestedArg)(?P<value>.*)$", re.MULTILINE)
_PART = re.compile(
    r"Got value: (?P<value>.*?)(\. Got value: .*)?$"
    r"|Unable to load config ['\"](?P<config>.*)['\"]",
    re.MULTILINE,
)

_WORDS = {"INT": "a whole number", "FLOAT": "a number", "TEXT": "text", "CLASS": "a class"}
_LONGEST = 90
"""Characters of a list of values; of a longer one, the option's text says what counts here."""


def wrong_value(
    message: str,
    list_options: Callable[[str], Sequence[HelpOption]],
    given: Sequence[str],
    files: Sequence[Config],
) -> tuple[str, str] | None:
    """Say what an option takes, for a value of another type, or which of its own is missing.

    Args:
        message: Of jsonargparse, one line for every type that it has tried.
        list_options: Lists the options of the verb that may begin with a word.
        given: The command line.
        files: Given with --config; the last that gives the option is named.

    Returns:
        The message and the option's name; None if the message is about something else.
    """
    keys = _nested_keys(message)
    if not keys or keys[0][0] == "config":
        return None
    name = ".".join(key for key, _ in keys)
    innermost = message[keys[-1][1] :]
    options = {_plain(option.name): option for option in list_options(name.split(".")[0])}
    option = options.get(name)
    kind = _form_of(name, options)
    if kind is None or ("CLASS" in kind and not _no_class(_value_in(innermost))):
        return None
    shown = option.name if option is not None else name
    typed = _typed_value(name, given)
    files_with = [file.path for file in files if _gives(file.content, name)]
    place = f"{files_with[-1]}: " if files_with and typed is None else ""
    own = _OF_OURS.search(innermost)
    if own is not None:
        return f"{place}{shown}: {own['said']}", shown
    missing = _MISSING.search(innermost)
    if missing is not None:
        return f"{place}{shown}: {missing['names']} is missing; the form is {kind}", shown
    one = kind.removesuffix(" ...")  # of several values
    value = typed if typed is not None and one == kind else _value_in(innermost)
    if value is None or not _OF_TYPE.search(innermost) or _OF_ELSE.search(innermost):
        return None
    must, hint = _in_words(one), _hint(value, one)
    if len(must) > _LONGEST and "|" in kind and option is not None and option.text:
        must, hint = f"be {first_sentence(option.text)}", ""
    return f"{place}{shown}={value} must {must}.{hint}", shown


def _nested_keys(message: str) -> list[tuple[str, int]]:
    """Return the keys on the way to the first mistake, with the place in the message behind each.

    Every key is indented further than the one that it lies in.
    """
    found: list[tuple[str, int]] = []
    depth = -1
    for match in _KEY.finditer(message.removeprefix("\n")):
        if len(match["indent"]) <= depth:
            break
        depth = len(match["indent"])
        if found and "-" in match["indent"] and match["name"] == found[-1][0]:
            break  # the reason of the same key
        found.append((match["name"], match.end()))
    return found


def _typed_value(name: str, given: Sequence[str]) -> str | None:
    """Find the value that the command line gives to an option, or to a part of it."""
    found = None
    for arg, following in zip(given, [*given, ""][1:], strict=True):
        option, equals, value = arg.partition("=")
        plain = option.replace(".init_args", "").removeprefix("--").removesuffix("+")
        if option.startswith("--") and f"{plain}.".startswith(f"{name}."):
            found = value if equals else following
    return None if found is None else _shortened(found)


def _value_in(innermost: str) -> str | None:
    """Find the value in the message, as it would be typed."""
    found = _WHOLE.search(innermost) or _PART.search(innermost)
    if found is None:
        return None
    named = found.groupdict()
    value = named["value"] or named.get("config") or ""
    try:
        plain: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return _shortened(value)  # it is no literal, but what was typed
    if isinstance(plain, dict | list):
        value = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip()
    return _shortened(value)


def _no_class(value: str | None) -> bool:
    """Tell whether a value cannot be a class: neither a name nor a mapping of its options."""
    try:
        plain = yaml.safe_load(value or "''")
    except yaml.YAMLError:
        return False  # cut short, or what no YAML is
    return not isinstance(plain, str | dict)


def _shortened(value: str) -> str:
    return (value if len(value) <= 60 else f"{value[:57]}...") or '""'


def _plain(name: str) -> str:
    return name.replace(".NAME", "").replace("[]", "")


def _form_of(name: str, options: dict[str, HelpOption]) -> str | None:
    """Return what an option takes, with the first of its own fields where it has some."""
    fields = [other for other in options if other.startswith(f"{name}.")]
    option = options.get(name)
    if option is None:
        return f"{{{fields[0].removeprefix(f'{name}.')}: VALUE, ...}}" if fields else None
    if not fields or not option.kind:
        return option.kind or None
    field = options[fields[0]]
    kind = f"{{{fields[0].removeprefix(f'{name}.')}: {field.kind or 'VALUE'}, ...}}"
    return option.kind.replace("{NAME: VALUE}", kind)


def _in_words(kind: str) -> str:
    """Write what a value must be: `be a whole number`, `be one of a, b`, `have the form [INT]`."""
    kinds = _alternatives(kind)
    if all(item == item.lower() for item in kinds) and len(kinds) > 1:
        return f"be one of {', '.join(kinds)}" if len(kinds) > 2 else f"be {' or '.join(kinds)}"
    forms = [item for item in kinds if item[:1] in "{["]
    words = [_WORDS.get(item, item) for item in kinds if item not in forms]
    written = [*([f"be {' or '.join(words)}"] if words else [])]
    written += [f"have the form {' or '.join(forms)}"] if forms else []
    return " or ".join(written)


def _alternatives(kind: str) -> list[str]:
    """Split `a|b` outside of brackets."""
    found, depth = [""], 0
    for character in kind:
        depth += (character in "{[") - (character in "}]")
        if character == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _hint(value: str, kind: str) -> str:
    kinds = _alternatives(kind)
    if "INT" in kinds:
        try:
            number = float(value)
        except ValueError:
            return ""
        return f" Write {int(number)}." if number.is_integer() else ""
    return did_you_mean(value, [item for item in kinds if item == item.lower()])


def _gives(content: Any, name: str) -> bool:
    """Tell whether a config gives an option, whose class may stand between its names."""
    parts = name.split(".")
    return holds(content, name) or any(
        holds(content, ".".join([*parts[:place], "init_args", *parts[place:]]))
        for place in range(1, len(parts))
    )
