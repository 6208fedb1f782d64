"""Run folder: everything that one run leaves behind, in one place that no other run writes to."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, NamedTuple, TypedDict, cast

import xxhash

from lit_pretrain.errors import UserError, nearest, warn
from lit_pretrain.files import (
    atomic_path,
    check_output,
    read_sealed_json,
    seal_json,
    sync,
    write_file,
    writing,
)
from lit_pretrain.redaction import redact, redact_arguments
from lit_pretrain.skips import Skips

CONFIG = "config.yaml"
LONGEST_NAME = 200
"""Bytes of a run's name: file systems allow 255, and scratch files put more around it."""
PROVENANCE = "provenance.json"
SKIPS = "skips.json"
"""The optimizer steps whose samples the run leaves out of its order."""
ABANDONED = "abandoned"
"""Folder of checkpoints from which the run has gone back."""
METRICS = "metrics.jsonl"
METRICS_DIGESTS = "metrics.xxh3"
"""One xxh3 in hexadecimal digits for every line of metrics.jsonl."""
SUMMARY = "summary.md"
SUMMARY_PAGE = "summary.html"
LOGGERS = "loggers.json"
"""What other loggers call the run."""
LOCK = ".lock"
DATASET = "manifest.json"
"""The file that marks a dataset, which a user may name in place of a run."""
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
    """Refuse an output folder that exists, or that cannot be written.

    Raises:
        UserError: It does, or cannot.
    """
    if os.path.exists(out):  # False for a name that is too long, where `Path.exists` raises
        raise UserError(f"{out} exists already; choose another place, or remove it")
    check_output(out, str(out))


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Write a new folder so that it appears whole or not at all.

    Args:
        out: The folder; it must not exist.
        fill: Writes the content into the scratch folder that it is called with.

    Raises:
        UserError: It exists, or cannot be written.
    """
    check_new_folder(out)
    with writing(str(out)), atomic_path(out) as scratch:
        scratch.mkdir()
        fill(scratch)


def check_run_name(name: str) -> None:
    """Refuse a name that is not the plain name of a folder below `--runs`.

    Raises:
        UserError: It is empty, stands for another place, or cannot be a file's name.
    """
    if not name.strip() or name != name.strip() or name in (".", ".."):
        trouble = "is not a name" if name.strip() else "is empty"
    elif "/" in name or "\\" in name or not name.isprintable():
        trouble = "holds a separator or an unprintable character"
    elif len(name.encode()) > LONGEST_NAME:
        trouble = f"takes {len(name.encode())} bytes; {LONGEST_NAME} are allowed"
    else:
        return
    raise UserError(
        f"--name {name!r} {trouble}: it must be a plain name such as run-1; --runs says in which"
        " folder runs lie"
    )


def check_run_unused(path: Path) -> None:
    """Refuse the folder of another run for a new one.

    What a start left that failed before its first step, without metrics and checkpoints, is no run.

    Raises:
        UserError: It holds a run.
    """
    metrics, kept = path / METRICS, path / "checkpoints"
    made_steps = (metrics.is_file() and metrics.stat().st_size > 0) or (
        kept.is_dir() and any(kept.iterdir())
    )
    if (path / CONFIG).exists() and made_steps:
        raise UserError(
            f"the run folder {path} already holds a run; choose another --name, or go on with that"
            " run by --resume auto"
        )


def no_run(place: str | Path, lacks: str) -> UserError:
    """Say why a path is not the run that is needed, and which run may have been meant.

    Args:
        place: As the user wrote it.
        lacks: What a run would have there, such as "it holds no complete checkpoint".
    """
    path = Path(place)
    if not path.exists():
        return UserError(
            f"{place} does not exist; give a run folder such as runs/NAME.{_meant_run(path)}"
        )
    if (path / CONFIG).is_file():
        return UserError(f"{place} is a run folder, but {lacks}")
    if (path / DATASET).is_file():
        return UserError(
            f"{place} is a dataset, which `lit_pretrain prepare` wrote, and not a run folder; give"
            " one such as runs/NAME"
        )
    below = _runs_in(path)
    if below:
        more = f" … ({len(below)} in all)" if len(below) > 5 else ""
        return UserError(
            f"{place} is a folder of runs; give one of them: {', '.join(below[:5])}{more}"
        )
    return UserError(f"{place} is not a run folder: {lacks}")


def _runs_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(str(child) for child in folder.iterdir() if (child / CONFIG).is_file())


def _meant_run(path: Path) -> str:
    """Ask about the run that is called like a missing path, beside it or in `runs`."""
    runs = {Path(run).name: run for run in [*_runs_in(path.parent), *_runs_in(Path("runs"))]}
    near = nearest(path.name, runs)
    return f" Did you mean {runs[near[0]]!r}?" if near else ""


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


def read_skips(run: Path) -> Skips:
    """Read which optimizer steps a run leaves out; none if it has no skips.json.

    Raises:
        UserError: The file is damaged.
    """
    file = run / SKIPS
    if not file.is_file():
        return Skips()
    try:
        return Skips.parse(str(read_sealed_json(file, known=("skip_steps",))["skip_steps"]))
    except (UserError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({error}): it says which steps the run leaves out. Remove it, and"
            f" go on with the skip_steps of the newest config in {run}: --skip_steps BEGIN:END"
        ) from None


def write_skips(run: Path, skips: Skips) -> None:
    """Record durably which optimizer steps a run leaves out, before it acts on that."""
    if skips:
        write_file(run / SKIPS, seal_json({"skip_steps": str(skips)}))
    else:
        (run / SKIPS).unlink(missing_ok=True)  # of a start that failed before its first step


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
    averaged: dict[str, float]
    """Checkpoint -> its weight in an average."""
    logit_difference: float
    """Largest difference between the logits before and after a merge."""
    manifest_hash: str
    tokenizer_hash: str
    template_hash: str | None
    data: str
    skipped: str | None
    """Optimizer steps of the order that are left out."""
    resumed_from: str | None
    precision: str
    threads: int
    """Threads of torch on a CPU, which decide the order of sums."""
    devices: str
    """How many devices, and how their mesh divides the run, in words."""
    unique_tokens: int | None
    parameters: dict[str, int]
    forecast: str | None
    """The validation metric that a law forecasts."""
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


_EVERY_RUN = (
    "verb", "started", "precision", "parameters", "revision", "data", "tokenizer_hash", "parent",
)  # fmt: skip
"""Facts that the provenance of every run folder holds."""


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
        "command": shlex.join([Path(sys.argv[0]).name, *redact_arguments(sys.argv[1:])]),
        **cast(ProvenanceFacts, redact(facts)),
    }


def read_provenance(run: Path, name: str = PROVENANCE) -> Provenance:
    """Read the provenance.json of a run, or that of a later attempt.

    Raises:
        UserError: It is missing or damaged.
    """
    file = run / name
    if not file.is_file():
        raise no_run(run, f"it has no {name}")
    loaded = read_sealed_json(file, known=Provenance.__annotations__)
    missing = [name for name in _EVERY_RUN if name not in loaded]
    wrong = [name for name in ("verb", "started") if not isinstance(loaded.get(name), str)]
    if not isinstance(loaded.get("parameters"), dict) or "total" not in loaded["parameters"]:
        wrong.append("parameters")
    if missing or wrong:
        raise UserError(f"{file} is damaged: no sound {', '.join(missing or wrong)} in it")
    return cast(Provenance, loaded)


def timestamp() -> str:
    """Return the local time as run folders record it, with its offset from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# ------------------------------------------------------------------ metrics


class MetricsFile:
    """Write metrics.jsonl: one JSON object per line, each with its optimizer step.

    A second file, metrics.xxh3, holds a digest of every line.

    Args:
        path: The file.
        first_step: The step from which the run goes on. Later lines are dropped: an attempt left
            them that went further than its last checkpoint.
        expected: Whether there must be lines already, because the run has logged some.
    """

    def __init__(self, path: Path, *, first_step: int, expected: bool = False) -> None:
        self.path = path
        run = path.parent
        lines = _metric_lines(run) if path.exists() else []
        kept = [text for text, values in lines if values["step"] <= first_step]
        if expected and not kept:
            warn(f"{path} has lost its lines up to step {first_step:,}; the run goes on without")
        write_file(run / METRICS_DIGESTS, "".join(f"{_digest(text)}\n" for text in kept))
        write_file(path, "".join(f"{text}\n" for text in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        text = json.dumps({"step": step, **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        with (self.path.parent / METRICS_DIGESTS).open("a", encoding="utf-8") as file:
            file.write(f"{_digest(text)}\n")


def sync_metrics(run: Path) -> None:
    """Wait until the disk holds all metrics of a run: a checkpoint must not outlive its history."""
    for name in (METRICS, METRICS_DIGESTS):
        if (run / name).exists():
            sync(run / name)


def complete_metrics(run: Path) -> dict[str, bytes]:
    """Read the files of a run's metrics as they agree with each other, although it goes on.

    Returns:
        Name of each file -> its content, up to the last line that has a digest.
    """
    # The digests first: a run writes a line before its digest.
    digests = (run / METRICS_DIGESTS).read_bytes().splitlines(keepends=True)
    lines = (run / METRICS).read_bytes().splitlines(keepends=True)
    digests = [digest for digest in digests if digest.endswith(b"\n")]
    return {
        METRICS: b"".join(lines[: len(digests)]),
        METRICS_DIGESTS: b"".join(digests),
    }


def read_metrics(run: Path, warn: Callable[[str], None] = warn) -> list[dict[str, float]]:
    """Read the lines of a run's metrics.jsonl; damaged ones are left out, with a warning.

    Args:
        run: The run's folder.
        warn: Receives the warnings.

    Raises:
        UserError: There is no such file.
    """
    if not (run / METRICS).exists():
        raise no_run(run, f"it has no {METRICS}")
    return [values for _, values in _metric_lines(run, warn)]


def _metric_lines(
    run: Path, warn: Callable[[str], None] = warn
) -> list[tuple[str, dict[str, float]]]:
    """Read the sound lines of metrics.jsonl, as text and as values, and warn of the others."""
    path, found = run / METRICS, scan_metrics(run)
    if found.lost:
        warn(f"{path}: {found.lost:,} of its lines are damaged or lost, and left out")
    if found.torn:
        warn(f"{path} ends within a line, as a killed run leaves it; that line is left out")
    return found.sound


class MetricLines(NamedTuple):
    """What a metrics.jsonl holds."""

    sound: list[tuple[str, dict[str, float]]]
    """Text and values of each line."""
    lost: int
    """Lines that are damaged, or of which only the digest is left."""
    torn: bool
    """Whether it ends within a line, as in a run that is writing one or was killed."""


def scan_metrics(run: Path) -> MetricLines:
    """Read the metrics.jsonl of a run, which may go on, and compare every line with its digest.

    Raises:
        UserError: It cannot be read.
    """
    path, digests = run / METRICS, run / METRICS_DIGESTS
    try:
        # The digests first: a run that goes on writes a line before its digest.
        expected = Counter(digests.read_bytes().split()) if digests.exists() else Counter()
        *lines, rest = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    proved, count = bool(expected), expected.total()
    sound = []
    for number, line in enumerate(lines):
        values = _metric_values(line)
        digest = _digest(line).encode()
        # A run between its two files, or killed there, has one more line than digests.
        last = number == len(lines) - 1 == count
        if values is not None and (not proved or expected[digest] > 0 or last):
            expected[digest] -= 1
            sound.append((line, values))
    return MetricLines(sound, max(count, len(lines)) - len(sound), bool(rest))


def _metric_values(line: str) -> dict[str, float] | None:
    """Parse a line of metrics.jsonl; None if it is damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(values, dict) and isinstance(values.get("step"), int)
    return values if sound and all(type(v) in (int, float) for v in values.values()) else None


def _digest(line: str) -> str:
    return xxhash.xxh3_64_hexdigest(line.encode())


def last_validation(run: Path) -> dict[str, float]:
    """Read the figures of a run's last validation; empty if it has none."""
    lines = read_metrics(run) if (run / METRICS).is_file() else []
    held_out = [line for line in lines if "val/loss" in line]
    last = held_out[-1] if held_out else {}
    return {key: value for key, value in last.items() if key.startswith("val")}


def recorded_seconds(lines: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """Add up the seconds in a run's metrics: of steps and validations, and of steps alone."""
    steps = validations = 0.0
    before = 0.0
    for line in lines:
        validations += line.get("time/validation_seconds", 0.0)
        if "time/step_seconds" in line:  # the mean over the steps since the line before
            steps += line["time/step_seconds"] * (line["step"] - before)
            before = line["step"]
    return steps + validations, steps


# ------------------------------------------------------------------ one writer


class RunLock:
    """Let one process at a time write into a run folder.

    The lock is one of the kernel, which ends with its owner; the file names the owner. Processes
    that the owner forks, such as workers of a loader, do not hold it.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Tell whether this process holds the lock."""
        return self._file is not None

    def take(self, folder: Path) -> None:
        """Make a run folder where there is none, and lock it.

        Raises:
            UserError: The folder cannot be written, or another process writes into it.
        """
        make_run_folder(folder)
        path = folder / LOCK
        while self._file is None:
            file = path.open("a+", encoding="utf-8")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                owner = file.read().strip()
                file.close()
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    warn(f"{folder} cannot be locked ({error}): start no second run in it")
                    return
                raise UserError(
                    f"the run folder {folder} is being written by {owner or 'another process'};"
                    " wait until it has ended, or choose another --name"
                ) from None
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if not same:  # its owner has just removed it
                file.close()
                continue
            self._path, self._file = path, file
        assert self._file is not None
        self._file.seek(0)
        if owner := self._file.read().strip():
            warn(f"took over the lock of {folder} from {owner}, which ended without releasing it")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()} (since {timestamp()})\n")
        self._file.flush()

    def release(self) -> None:
        """Unlock the folder, if it is locked."""
        if self._path is not None and self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._path = self._file = None
