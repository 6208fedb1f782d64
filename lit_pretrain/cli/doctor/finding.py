"""Finding: one thing that was looked at, what it was, and what to do about it."""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

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


def in_trouble(findings: Sequence[Finding]) -> bool:
    """Whether anything will fail."""
    return any(finding.verdict == "trouble" for finding in findings)


def findings_table(findings: Sequence[Finding]) -> str:
    """The report for a person: a line for each finding, its advice below it, and the sum at the
    end.
    """
    width = max(len(finding.check) for finding in findings)
    lines = [f"{'check':<{width}}  verdict  found", "─" * (width + 40)]
    for finding in findings:
        lines.append(f"{finding.check:<{width}}  {finding.verdict:<7}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':<{width}}  {'':7}  → {finding.advice}")
    counts = {
        verdict: sum(finding.verdict == verdict for finding in findings)
        for verdict in ("trouble", "note", "ok")
    }
    return "\n".join(
        [
            *lines,
            "",
            f"doctor: {counts['trouble']} in trouble, {counts['note']} to note, {counts['ok']} ok",
        ]
    )


def findings_json(findings: Sequence[Finding]) -> str:
    """The report for a program."""
    return json.dumps(
        {"trouble": in_trouble(findings), "findings": [finding._asdict() for finding in findings]},
        indent=1,
    )
