"""Run folder: everything that one run leaves behind, in one place that no other run writes to."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from lit_pretrain.errors import UserError
from lit_pretrain.files import atomic_path, write_file

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.md"
TENSORBOARD = "tensorboard"
TOKENIZER = "tokenizer.json"
PACKAGES = (
    "lit_pretrain",
    "torch",
    "lightning",
    "litdata",
    "torchmetrics",
    "jsonargparse",
    "tokenizers",
    "tiktoken",
    "numpy",
)


def check_new_folder(out: str | Path) -> None:
    """Refuse an output folder that exists.

    Raises:
        UserError: It does.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Write a new folder so that it appears whole or not at all.

    Args:
        out: The folder; it must not exist.
        fill: Writes the content into the scratch folder that it is called with.

    Raises:
        UserError: It exists, or cannot be written.
    """
    check_new_folder(out)
    try:
        with atomic_path(out) as scratch:
            scratch.mkdir()
            fill(scratch)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error


def check_run_unused(path: Path) -> None:
    """Refuse the folder of another run for a new one.

    Raises:
        UserError: It holds a run.
    """
    if (path / CONFIG).exists():
        raise UserError(
            f"the run folder {path} already holds a run; choose another --name, or go on with that"
            " run by --resume auto"
        )


def make_run_folder(path: Path) -> None:
    """Create a run's folder where there is none, and make sure that it is writable.

    Raises:
        UserError: It cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"the run folder {path} cannot be written ({error.strerror or error}); choose another"
            " place with --runs, or mend its rights"
        ) from None


def revision() -> str | None:
    """Read the git revision of the working directory; None outside a repository.

    "+changes" follows it if files differ from the revision.
    """
    try:
        head, changed = (
            _git("rev-parse", "HEAD"),
            _git("status", "--porcelain", "--untracked-files=no"),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()


class ProvenanceFacts(TypedDict, total=False):
    """Hold what a verb adds to provenance.json; no verb knows all of it."""

    verb: str
    parent: str | None
    """The checkpoint or folder that the weights came from."""
    imported: str
    """Folder of the peft adapter that was imported."""
    base: str
    """Where the base of a merged adapter lay."""
    base_hash: str
    logit_difference: float
    """Largest difference between the logits before and after a merge."""
    manifest_hash: str
    tokenizer_hash: str
    template_hash: str | None
    data: str
    resumed_from: str | None
    precision: str
    unique_tokens: int | None
    parameters: dict[str, int]
    adapter: str | None
    """Size of the adapter, in words."""
    started: str


class Provenance(ProvenanceFacts, total=False):
    """Hold the content of provenance.json: where a run comes from."""

    revision: str | None
    versions: dict[str, str]
    host: str
    machine: str
    command: str


def provenance(facts: ProvenanceFacts) -> Provenance:
    """Add revision, versions, machine and command to the facts of a verb."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "revision": revision(),
        "versions": {"python": platform.python_version(), **versions},
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **facts,
    }


def read_provenance(run: Path) -> Provenance:
    """Read the provenance.json of a run.

    Raises:
        UserError: It is missing.
    """
    file = run / PROVENANCE
    if not file.is_file():
        raise UserError(f"{file} is missing: {run} is not a run folder")
    loaded: Provenance = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def timestamp() -> str:
    """Give the local time as run folders record it, with its offset from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class MetricsFile:
    """Write metrics.jsonl: one JSON object per line, each with its optimizer step.

    Args:
        path: The file.
        first_step: The step from which the run goes on. Later lines are dropped: an attempt left
            them that went further than its last checkpoint.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        self.path = path
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # the line that was being written when the run was killed
            write_file(path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read all lines of a run's metrics.jsonl."""
    path = run / METRICS
    if not path.exists():
        raise UserError(f"{run} is not a run folder: it has no {METRICS}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_validation(run: Path) -> dict[str, float]:
    """Read the figures of a run's last validation; empty if it has none."""
    lines = read_metrics(run) if (run / METRICS).is_file() else []
    held_out = [line for line in lines if "val/loss" in line]
    last = held_out[-1] if held_out else {}
    return {key: value for key, value in last.items() if key.startswith("val")}
