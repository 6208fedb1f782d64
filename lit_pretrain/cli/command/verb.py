"""Verbs: how they are found, what the file of each declares, and how the dispatcher runs it."""

import json
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError, did_you_mean, message_of

CLI = Path(__file__).parents[1]
"""Folder of the verbs."""
COLLECTED: ContextVar[list[Any] | None] = ContextVar("COLLECTED", default=None)
"""Where a parser that is asked for help leaves itself instead of printing it; None: nowhere."""


@dataclass(frozen=True)
class Verb:
    """A verb, or one part of a group."""

    run: Callable[[list[str]], int]
    """Takes the arguments and returns the exit code."""
    example: str
    """A whole command line that works, shown to users who give no arguments. An example without
    arguments says that the verb needs none."""
    help: str = ""
    """One line for the listing of a group; for a verb, the file's docstring takes its place."""


@dataclass(frozen=True)
class Group:
    """A verb made of parts, such as `lit_pretrain scaling fit`."""

    parts: Mapping[str, Verb]


def verbs() -> dict[str, str]:
    """Find the verbs and their one-line help, without importing anything.

    A verb is a module or a package directly in `cli/` that defines `VERB`; the first line of its
    docstring is its help.

    Returns:
        Name of the verb -> help, by name.
    """
    found = {}
    for file in [*CLI.glob("*.py"), *CLI.glob("*/__init__.py")]:
        source = file.read_text(encoding="utf-8")
        if "\nVERB = " in source:
            name = file.parent.name if file.stem == "__init__" else file.stem
            found[name] = source.removeprefix('"""').partition("\n")[0].removesuffix('"""')
    return dict(sorted(found.items()))


def dispatch(command: str, verb: Verb | Group, arguments: list[str]) -> int:
    """Run a verb, or the part of a group that the first argument names.

    Args:
        command: What the user typed so far, such as `lit_pretrain scaling`.
        verb: What that names.
        arguments: Those that follow.

    Returns:
        The exit code.

    Raises:
        UserError: The arguments are missing, or name no part of the group.
    """
    if isinstance(verb, Verb):
        return verb.run(_settle_help(arguments)) if arguments else _run_bare(verb)
    names = ", ".join(verb.parts)
    if not arguments:
        example = next(iter(verb.parts.values())).example
        raise UserError(f"{command} needs one of: {names}\n{_for_example(example)}")
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help"):
        print(_listing(command, verb))
        return 0
    if name not in verb.parts:
        hint = did_you_mean(name, verb.parts)
        raise UserError(f"{command} has no part {name!r}.{hint} Parts: {names}")
    return dispatch(f"{command} {name}", verb.parts[name], rest)


def parser_of(verb: Verb) -> Any:
    """Make the parser of a verb and return it, without doing anything."""
    found: list[Any] = []
    token = COLLECTED.set(found)
    try:
        verb.run(["--help=all"])
    except SystemExit:
        pass  # as after any help
    finally:
        COLLECTED.reset(token)
    return found[0]


def show_page(parser: Any, page: Callable[[], str]) -> None:
    """Print a parser's page of help, unless the parser itself is wanted."""
    collected = COLLECTED.get()
    if collected is None:
        print(page())
    else:
        collected.append(parser)


def print_findings(content: object, table: Callable[[], str], *, as_json: bool) -> None:
    """Print what a verb has found: as JSON for programs, or as a table for people."""
    text = f"{json.dumps(content, indent=1, ensure_ascii=False)}\n" if as_json else table()
    sys.stdout.write(text)


def _settle_help(arguments: list[str]) -> list[str]:
    """Write `--help TOPIC` as one argument, which no parser takes for another option's value.

    `--NAME.help [CLASS]`, the spelling of jsonargparse, asks the same of the options of a class.
    """
    settled: list[str] = []
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        nested = option.startswith("--") and option.endswith(".help")
        if not nested and option not in ("-h", "--help"):
            settled.append(f"{option}{equals}{value}")
            continue
        if not equals and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        if nested:
            name = option.removesuffix(".help")
            settled += [f"{name}={value}"] if value else []
            value = name.removeprefix("--")
        settled.append(f"--help={value}" if value else "--help")
    return settled


def _run_bare(verb: Verb) -> int:
    """Run a verb without arguments, and show its example after what it says of those it needs."""
    try:
        return verb.run([])
    except UserError as error:
        if error.exit_code != UserError.exit_code:  # it had begun, and was stopped
            raise
        error.args = (f"{message_of(error)}\n{_for_example(verb.example)}",)
        raise
    except SystemExit as stop:  # the parser has printed what is missing
        if stop.code == 2:
            print(_for_example(verb.example), file=sys.stderr)
        raise


def _for_example(example: str) -> str:
    return f"For example: {example}"


def _listing(command: str, group: Group) -> str:
    width = max(map(len, group.parts))
    lines = [f"  {name:<{width}}  {part.help}" for name, part in group.parts.items()]
    head, foot = f"usage: {command} WHAT [options]", f"`{command} WHAT --help` lists the options."
    return "\n".join([head, "", *lines, "", foot])
