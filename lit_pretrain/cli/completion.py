"""Print what completes verbs, options and values on Tab, for a shell to read."""

import argparse
import importlib
from collections.abc import Mapping
from typing import Any

from lit_pretrain.cli.command.verb import Group, Verb, parser_of, verbs


def main(argv: list[str]) -> int:
    """Run `lit_pretrain completion`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("completion", __doc__)
    parser.add_argument(
        "shell", type=str, choices=["bash", "zsh", "fish"], help="Whose language to print."
    )
    shell = parser.parse_args(argv).shell
    print(completion_script(declared_verbs(), shell))
    return 0


def declared_verbs() -> dict[str, Verb | Group]:
    """List every verb, as its file declares it."""
    return {name: importlib.import_module(f"lit_pretrain.cli.{name}").VERB for name in verbs()}


def completion_script(declared: Mapping[str, Verb | Group], shell: str) -> str:
    """Write the script that completes the verbs, with all that is known about them now.

    A shell that asked the parsers at each Tab would wait for the import of torch. shtab writes the
    script from a parser that knows the same options and imports nothing.

    Args:
        declared: The verbs by name.
        shell: bash, zsh or fish.
    """
    import shtab

    parser = argparse.ArgumentParser(prog="lit_pretrain")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    _add_verbs(parser, declared)
    script: str = shtab.complete(parser, shell)
    return script


def _add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb | Group]) -> None:
    parts = parser.add_subparsers()
    for name, verb in verbs.items():
        if isinstance(verb, Group):
            _add_verbs(parts.add_parser(name, help=name), verb.parts)
        else:  # shtab passes over what has no help
            part = parts.add_parser(name, help=verb.help or name, add_help=False)
            _add_options(part, parser_of(verb))


def _add_options(part: argparse.ArgumentParser, own: Any) -> None:
    """Add the options of a verb's own parser, those of classes that are not the default too."""
    import shtab

    from lit_pretrain.cli.command.help_page import fields_elsewhere, first_sentence, list_options

    for option in list_options(own):
        if "[]" in option.name or ".NAME." in option.name:
            continue  # nothing that can be typed as it stands
        flags = [flag.partition(" ")[0] for flag in option.flag.split(", ")]
        about = first_sentence(option.text).replace("%", "%%")
        if not option.kind:
            part.add_argument(*flags, action="store_true", help=about)
            continue
        nargs = {"nargs": "*"} if not option.flag.startswith("-") else {}
        action = part.add_argument(*flags, help=about, **nargs)  # type: ignore[arg-type]  # a dict
        words = option.kind.split("|") if option.kind.islower() and "[" not in option.kind else []
        if words or option.classes:
            action.choices = [*words, *option.classes]
        else:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab reads
    known = {flag for action in part._actions for flag in action.option_strings}
    for name in sorted(fields_elsewhere(own)):
        if f"--{name}" not in known:
            part.add_argument(f"--{name}")


VERB = Verb(main, example="lit_pretrain completion bash")
