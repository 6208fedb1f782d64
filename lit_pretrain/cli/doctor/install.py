"""Install: whether Python and the packages are those that pyproject.toml asks for, can be
imported, and are not known to be bad.
"""

import re
import sys
from importlib import metadata
from typing import NamedTuple

from lit_pretrain.cli.doctor import Finding
from lit_pretrain.cli.doctor.machine import IMPORTS, Probe

DISTRIBUTION = "lit_pretrain"
REINSTALL = "run `bash scripts/setup.sh` again (it mends an existing .venv)"
TORCHVISION_MISMATCH = "torchvision::nms"
"""Part of the message by which a torchvision that was built for another torch kills `import
lightning`.
"""


class BadRelease(NamedTuple):
    """Releases that must not be used, whatever asks for them."""

    package: str
    first: tuple[int, ...]
    last: tuple[int, ...]
    """Included, as is `first`."""
    what: str
    advice: str
    hostile: bool = False
    """Importing it is what does the harm: nothing may import it, not even to look at it."""


KNOWN_BAD = (
    # of one package, the worst first
    BadRelease(
        "lightning",
        (2, 6, 2),
        (2, 6, 3),
        "malicious: it steals credentials when it is imported (GHSA-w37p-236h-pfx3)",
        "remove this environment, and replace every password, key and token that this machine could"
        " read",
        hostile=True,
    ),
    *(
        BadRelease(
            package,
            (0,),
            (2, 6, 5),
            "a checkpoint can run any code while it is loaded (GHSA-qqmf-gpg7-g8gw, mended in"
            " 2.6.6)",
            f"{REINSTALL}, and load no checkpoint of others before",
        )
        for package in ("lightning", "pytorch-lightning")
    ),
)


def installed(package: str) -> str | None:
    """Version of an installed package; None if it is absent or its record is damaged."""
    try:
        # The record of an interrupted installation can lack its version.
        return metadata.distribution(package).metadata["Version"] or None
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[Finding]:
    """Python and every package that ours requires, against the versions it requires."""
    try:
        ours = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [
            Finding(
                "lit_pretrain",
                f"not installed for {sys.executable}",
                "trouble",
                "run `bash scripts/setup.sh`, then use .venv/bin/lit_pretrain",
            )
        ]
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        return [
            Finding(
                "packaging", "not installed, so no version can be compared", "trouble", REINSTALL
            )
        ]
    wanted, python = (
        SpecifierSet(ours.metadata["Requires-Python"]),
        ".".join(map(str, sys.version_info[:3])),
    )
    findings = [
        (
            Finding("Python", f"{python} (required {wanted})")
            if wanted.contains(python, prereleases=True)
            else Finding(
                "Python",
                f"{python} (required {wanted})",
                "trouble",
                "install a supported Python and run `PYTHON=/path/to/it bash scripts/setup.sh`",
            )
        )
    ]
    for line in ours.requires or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = installed(needed.name)
        asked = f"(required {needed.specifier})"
        if version is None:
            findings.append(Finding(needed.name, f"not installed {asked}", "trouble", REINSTALL))
        elif needed.specifier.contains(version, prereleases=True):
            findings.append(Finding(needed.name, f"{version} {asked}"))
        else:
            findings.append(Finding(needed.name, f"{version} {asked}", "trouble", REINSTALL))
    return findings


def bad_releases() -> list[BadRelease]:
    """Which of the known-bad releases are installed; of one package, the worst. Needs no other
    package.
    """
    found: dict[str, BadRelease] = {}
    for bad in KNOWN_BAD:
        version = installed(bad.package)
        if version is not None and bad.first <= _release(version) <= bad.last:
            found.setdefault(bad.package, bad)
    return list(found.values())


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 6, 5) of 2.6.5.post1."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def known_bad(releases: list[BadRelease]) -> list[Finding]:
    """The installed known-bad releases as findings."""
    if not releases:
        return [Finding("known-bad releases", "none")]
    return [
        Finding(
            "known-bad releases",
            f"{bad.package} {installed(bad.package)}: {bad.what}",
            "trouble",
            bad.advice,
        )
        for bad in releases
    ]


def imports(probe: Probe) -> list[Finding]:
    """Whether the imports that everything rests on really work."""
    findings = []
    for name in IMPORTS:
        if name in probe.skipped:
            findings.append(
                Finding(
                    f"import {name}",
                    "not tried: it would run the malicious release",
                    "trouble",
                    "see known-bad releases",
                )
            )
        elif name in probe.imported:
            findings.append(Finding(f"import {name}", f"works ({probe.imported[name]:.1f} s)"))
        elif name in probe.failed and TORCHVISION_MISMATCH in probe.failed[name]:
            findings.append(
                Finding(
                    f"import {name}",
                    f"fails: the installed torchvision {installed('torchvision') or ''} does not"
                    f" match this torch ({probe.failed[name]})",
                    "trouble",
                    f"run `{sys.executable} -m pip uninstall --yes torchvision`; text needs none",
                )
            )
        else:
            why = probe.failed.get(name) or probe.died or "not reached"
            findings.append(
                Finding(
                    f"import {name}",
                    f"fails: {why}",
                    "trouble",
                    f"{REINSTALL}; if it stays so, remove .venv first",
                )
            )
    return findings
