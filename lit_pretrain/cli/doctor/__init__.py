"""Examine this machine (versions, devices, compiler, disk, data) and say what to mend."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from lit_pretrain.cli.command.verb import Verb, show_page
from lit_pretrain.errors import did_you_mean

VERDICTS = (
    "Verdicts: ok; note (works, but could be better); trouble (will fail). "
    "Exit code: 0 without trouble, 1 with it, 2 for a mistake in the options."
)


Severity = Literal["ok", "note", "trouble"]
"""ok: as it should be. note: works, but worse than it could. trouble: something will fail."""


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    """What was looked at."""
    found: str
    """What it is."""
    verdict: Severity = "ok"
    advice: str = ""
    """What to do; empty only where nothing needs doing."""


def findings_table(findings: Sequence[Finding]) -> str:
    """Format the report for a person: each finding with its advice below it, and the counts."""
    width = max(len(finding.check) for finding in findings)
    lines = [f"{'check':<{width}}  verdict  found", "─" * (width + 40)]
    for finding in findings:
        lines.append(f"{finding.check:<{width}}  {finding.verdict:<7}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':<{width}}  {'':7}  → {finding.advice}")
    counts = Counter(finding.verdict for finding in findings)
    return "\n".join(
        [
            *lines,
            "",
            f"doctor: {counts['trouble']} in trouble, {counts['note']} to note, {counts['ok']} ok",
        ]
    )


class _Parser(argparse.ArgumentParser):
    # Of the standard library, unlike the other verbs': it must work where packages are broken.
    def print_help(self, file: Any = None) -> None:
        show_page(self, self.format_help)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n`{self.prog} --help` lists the options.", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> int:
    """Run `lit_pretrain doctor`."""
    parser = _Parser(
        prog="lit_pretrain doctor", description=__doc__, epilog=VERDICTS, allow_abbrev=False,
        formatter_class=partial(argparse.HelpFormatter, width=80),
    )  # fmt: skip
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
    # All of its help is one page.
    given = ["--help" if arg.startswith("--help=") else arg for arg in argv]
    options, unknown = parser.parse_known_args(given)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        hint = did_you_mean(unknown[0].split("=")[0], known)
        parser.error(f"unrecognized argument {unknown[0]!r}.{hint}")

    from lit_pretrain.cli.doctor import disk, machine

    required = disk.requirements()
    bad = disk.bad_releases()
    hostile = any(release.hostile for release in bad)
    found = machine.probe(skip=machine.IMPORTS[1:] if hostile else ())
    findings = [
        *required,
        *disk.known_bad(bad),
        *disk.imports(found),
        *machine.torch_build(found),
        *machine.devices(found),
        *machine.processor(found),
        *machine.compiler(found),
        disk.folder("runs folder", options.runs),
        *disk.data_findings(options.data, verify=options.verify),
    ]
    trouble = any(finding.verdict == "trouble" for finding in findings)
    if options.json:
        report = {"trouble": trouble, "findings": [finding._asdict() for finding in findings]}
        print(json.dumps(report, indent=1))
    else:
        print(findings_table(findings))
    return 1 if trouble else 0


VERB = Verb(main, example="lit_pretrain doctor")
