"""What lies on the disk: Python and the packages, the datasets, the runs, and the room left.

Packages must be those that pyproject.toml asks for, can be imported, and are not known to be bad.
Datasets must be whole.
"""

import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from lit_pretrain.cli.doctor import Finding
from lit_pretrain.cli.doctor.machine import IMPORTS, Probe
from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest, verify_chunk
from lit_pretrain.errors import UserError
from lit_pretrain.files import cache_folder, canonical_hash, is_remote
from lit_pretrain.plain_data import load_json

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
    """Read the version of an installed package; None if it is absent or its record is damaged."""
    try:
        # The record of an interrupted installation can lack its version.
        return metadata.distribution(package).metadata["Version"] or None
    except (metadata.PackageNotFoundError, FileNotFoundError):
        # The second is importlib_metadata's, which answers for `metadata` once it is imported.
        return None


def requirements() -> list[Finding]:
    """Compare Python and every package that ours requires with the versions it requires."""
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
    """List the known-bad releases that are installed; of one package, the worst.

    It needs no other package.
    """
    found: dict[str, BadRelease] = {}
    for bad in KNOWN_BAD:
        version = installed(bad.package)
        if version is not None and bad.first <= _release(version) <= bad.last:
            found.setdefault(bad.package, bad)
    return list(found.values())


def _release(version: str) -> tuple[int, ...]:
    """Read the leading numbers of a version: (2, 6, 5) of 2.6.5.post1."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def known_bad(releases: list[BadRelease]) -> list[Finding]:
    """Report the known-bad releases that are installed."""
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
    """Check that the imports that everything rests on really work."""
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


GB = 1000**3
SCARCE = 1 * GB
"""Below it a run of the quick start (three checkpoints of 0.3 GB) no longer fits."""
TIGHT = 10 * GB
NAMED = 5
"""Damaged chunks that are named one by one."""


def folder(label: str, path: Path) -> Finding:
    """Check that a folder can be written, or made, and how much room its disk has.

    Args:
        label: What it is for.
        path: It need not exist; nothing is left in it.
    """
    there = path.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    state = (
        f"{path}" if there == path.expanduser().absolute() else f"{path} (made when it is needed)"
    )
    if not there.is_dir():
        return Finding(
            label,
            f"{path}: {there} is a file, not a folder",
            "trouble",
            "move it away, or choose another place",
        )
    try:
        with tempfile.TemporaryFile(dir=there) as scratch:
            scratch.write(b"x")
            scratch.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(
            label,
            f"{state}: {there} cannot be written ({error.strerror or error})",
            "trouble",
            "mend its rights, free some space, or choose another place",
        )
    return space(label, state, free)


def space(label: str, state: str, free: int) -> Finding:
    """Say what so many free bytes are good for."""
    found = f"{state}, {free / GB:,.1f} GB free"
    if free < SCARCE:
        return Finding(
            label,
            found,
            "trouble",
            f"less than {SCARCE / GB:.0f} GB: free some space, or choose another disk",
        )
    if free < TIGHT:
        return Finding(
            label,
            found,
            "note",
            f"less than {TIGHT / GB:.0f} GB: checkpoints take 12 bytes a parameter, and up to three"
            " are kept",
        )
    return Finding(label, found)


def data_findings(location: str, *, verify: bool) -> list[Finding]:
    """Examine the folder of the data and the datasets in it; of remote data, its cache."""
    if is_remote(location):
        return [folder(f"cache of {location}", cache_folder(location, None))]
    return [
        folder("data folder", Path(location)),
        *datasets(Path(location).expanduser(), verify=verify),
    ]


def datasets(path: Path, *, verify: bool) -> list[Finding]:
    """Examine the dataset at a path, or those in it.

    Args:
        path: A dataset, a folder of datasets, or a place where none is yet.
        verify: Compute the sha256 of every file, instead of comparing sizes.
    """
    found = (
        [path]
        if (path / MANIFEST_FILENAME).exists()
        else sorted(file.parent for file in path.glob(f"*/{MANIFEST_FILENAME}"))
    )
    if not found:
        return [
            Finding(
                "dataset",
                f"none in {path} yet; `lit_pretrain prepare --config configs/prepare/embedded.yaml`"
                " makes one without a download",
            )
        ]
    return [finding for one in found for finding in _dataset(one, verify=verify)]


def _dataset(path: Path, *, verify: bool) -> list[Finding]:
    label = f"dataset {path.name}"
    try:
        manifest = Manifest.load(path)
    except UserError as error:
        return [_trouble(label, str(error))]
    damaged = manifests.verify(path, manifest) if verify else []
    chunks = size = 0
    for name, source in manifest.sources.items():
        for split, part in source.splits.items():
            for chunk in part.chunks:
                chunks, size = chunks + 1, size + chunk.bytes
                file = path / split / name / chunk.filename
                if not verify and not (file.is_file() and file.stat().st_size == chunk.bytes):
                    try:
                        verify_chunk(file, chunk)  # names what is wrong
                    except UserError as error:
                        damaged.append(str(error))
    if reason := _tokenizer_trouble(path / "tokenizer.json", manifest.tokenizer.hash):
        damaged.append(reason)
    if damaged:
        more = (
            [Finding(label, f"and {len(damaged) - NAMED} more like these", "trouble")]
            if len(damaged) > NAMED
            else []
        )
        return [*(_trouble(label, message) for message in damaged[:NAMED]), *more]
    counts = (
        f"{manifest.tokens('train'):,} training tokens in {chunks} chunks of {size / 1e6:,.1f} MB"
    )
    checked = (
        "every sha256 is right" if verify else "every size is right (--verify compares contents)"
    )
    return [Finding(label, f"{path}: {', '.join(manifest.sources)}; {counts}; {checked}")]


def _tokenizer_trouble(file: Path, expected: str) -> str | None:
    mend = (
        "Copy it again from where the dataset came from, or delete the dataset's directory and run"
        " `lit_pretrain prepare` again."
    )
    try:
        found = canonical_hash(load_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return f"{file} cannot be read: {error}. {mend}"
    return (
        None
        if found == expected
        else (
            f"{file} is not the tokenizer that encoded the data: its hash is {found}, the manifest"
            f" says {expected}. {mend}"
        )
    )


def _trouble(label: str, message: str) -> Finding:
    """Split a message that says first what is wrong and last what to do."""
    what, _, advice = message.rstrip(".").rpartition(". ")
    return Finding(label, what or message, "trouble", advice if what else "")
