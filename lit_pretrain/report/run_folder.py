"""Run folder: everything that one run leaves behind, in one place that no other run writes to."""

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file

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
    """Create a run's folder where there is none, and make sure that it can be written.

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


def revision() -> Optional[str]:
    """Git revision of the working directory, with "+changes" if files differ from it; None
    outside a repository.
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


def provenance(**facts: Any) -> dict[str, Any]:
    """Where a run comes from: revision, versions, machine and command, plus the facts given."""
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


class MetricsFile:
    """metrics.jsonl: one JSON object per line, each with its optimizer step.

    Args:
        path: The file.
        first_step: Lines beyond this step, left by an attempt that went further than its last
            checkpoint, are dropped.
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

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl."""
    path = run / METRICS
    if not path.exists():
        raise UserError(f"{run} is not a run folder: it has no {METRICS}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
