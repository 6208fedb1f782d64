"""Examine this machine (versions, devices, compiler, disk, data) and say what to mend."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import did_you_mean

VERDICTS = (
    "Verdicts: ok; note (works, but could be better); trouble (will fail). "
    "Exit code: 0 without trouble, 1 with it, 2 for a mistake in the options."
)


class _Parser(argparse.ArgumentParser):
    # Of the standard library, unlike the other verbs': it must work where packages are broken.
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n`{self.prog} --help` lists the options.", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> int:
    """Run `lit_pretrain doctor`."""
    parser = _Parser(
        prog="lit_pretrain doctor", description=__doc__, epilog=VERDICTS, allow_abbrev=False
    )
    parser.add_argument(
        "--data", default="data", help="A dataset, or the folder of datasets. Default: data"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="The folder of runs. Default: runs"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Compute the sha256 of every chunk of the data; else only sizes are compared.",
    )
    parser.add_argument("--json", action="store_true", help="Print the findings as JSON.")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        hint = did_you_mean(unknown[0].split("=")[0], known)
        parser.error(f"unrecognized argument {unknown[0]!r}.{hint}")

    from lit_pretrain.cli.doctor import finding, folders, install, machine
    from lit_pretrain.cli.doctor.probe import IMPORTS, probe

    required = install.requirements()
    bad = install.bad_releases()
    found = probe(skip=IMPORTS[1:] if any(release.hostile for release in bad) else ())
    findings = [
        *required,
        *install.known_bad(bad),
        *install.imports(found),
        *machine.torch_build(found),
        *machine.devices(found),
        *machine.processor(found),
        *machine.compiler(),
        folders.folder("runs folder", options.runs),
        *folders.data_findings(options.data, verify=options.verify),
    ]
    print(finding.findings_json(findings) if options.json else finding.findings_table(findings))
    return 1 if finding.in_trouble(findings) else 0


VERB = Verb(main, example="lit_pretrain doctor")
