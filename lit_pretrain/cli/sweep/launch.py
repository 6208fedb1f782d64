"""Train the missing runs of a sweep on this machine, or write them out for another one."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from lit_pretrain.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, UserError
from lit_pretrain.files import write_file
from lit_pretrain.report.charts import clock
from lit_pretrain.slurm_script import slurm_directives

# Folders and files in the output folder of a sweep.
CONFIGS, LOGS, LOCK = "configs", "logs", ".lock"
SCRIPT, LIST = "sweep.sbatch", "sweep.txt"
_POLL_SECONDS = 0.2


@dataclass
class SlurmSettings:
    """Engine slurm: a script with one array task for every run that is missing."""

    partition: str | None = None
    """See `sinfo`. Default: the cluster's."""
    time: str = "24:00:00"
    """Time limit of a run. A run that does not end in time saves itself, and the next array
    continues it.
    """
    environment: str | None = None
    """Command that activates the Python environment on the nodes. Default: the directory of
    this Python comes first in PATH.
    """
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, e.g. `{account: mine, gpus-per-node: "8"}`."""


@dataclass(kw_only=True)
class LaunchSettings:
    """Where the runs of a sweep lie, and how they are started."""

    out: str = "runs/sweep"
    """Folder for the run folders, and for the configs and logs of all runs."""
    engine: Literal["local", "slurm", "list"] = "local"
    """local: train now, in processes of this machine. slurm: write the script of a job array.
    list: write the commands of the runs, one per line.
    """
    jobs: int = 1
    """Runs that train at the same time; for a job array, 0 sets no limit."""
    threads: int | None = None
    """CPU threads of a run's process. Default: the cores of this machine divided by jobs."""
    launcher: str = ""
    """Prefix of the command of every run, such as `nice -n 10` or `numactl --cpunodebind 0`."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    """Engine slurm."""
    device: str | None = None
    """Kind of the devices, to estimate the time from their peak: H100, … Default: estimate it from
    the speed of finished runs of the sweep.
    """
    mfu: float | None = None
    """Share of the peak that training reaches. Default: depends on the device, with its source."""
    price: float | None = None
    """Dollars per device-hour."""
    dry_run: bool = False
    """Print what the sweep would take, and write and start nothing."""


class Unfinished(UserError):
    """Runs of a sweep are still missing; the same command continues with them."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def training_command(config: Path, devices: int, *, launched: bool) -> list[str]:
    """Build the command that trains one run, or continues it.

    Args:
        config: Config file of the run.
        devices: Devices that it trains on.
        launched: Whether torchrun starts a process per device; else the run starts its own
            processes.
    """
    fit = ["-m", "lit_pretrain", "fit", "--config", str(config), "--resume", "auto"]
    if launched and devices > 1:
        return ["torchrun", f"--nproc_per_node={devices}", *fit]
    return ["python" if launched else sys.executable, *fit]


def write_list(settings: LaunchSettings, devices: Mapping[str, int]) -> Path:
    """Write the commands of the runs, one per line, from the name of each and its devices."""
    out = Path(settings.out)
    lines = [
        _text(
            settings.launcher,
            training_command(out / CONFIGS / f"{name}.yaml", count, launched=True),
        )
        for name, count in devices.items()
    ]
    write_file(out / LIST, "".join(f"{line}\n" for line in lines))
    return out / LIST


def write_slurm(settings: LaunchSettings, names: Sequence[str], devices: int) -> Path:
    """Write the script of a job array with a task for each run.

    Slurm signals a task two minutes before its time limit, and the run then saves itself.
    """
    out, slurm = Path(settings.out), settings.slurm
    options = {
        "job-name": out.name,
        "array": f"0-{len(names) - 1}" + (f"%{settings.jobs}" if settings.jobs else ""),
        "output": f"{str(out).replace('%', '%%')}/{LOGS}/%A_%a.log",
        "time": slurm.time,
        "nodes": "1",
        "ntasks-per-node": str(devices),
        "signal": "USR1@120",
        **({"partition": slurm.partition} if slurm.partition else {}),
        **slurm.sbatch,
    }
    environment = (
        slurm.environment or f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    )
    config = f'{shlex.quote(f"{out / CONFIGS}/")}"$run".yaml'
    script = [
        "#!/usr/bin/env bash",
        *slurm_directives(options),
        "set -euo pipefail",
        environment,
        f"cd {shlex.quote(os.getcwd())}",
        f"runs=({shlex.join(names)})",
        'run="${runs[$SLURM_ARRAY_TASK_ID]}"',
        f"srun {settings.launcher.strip()} python -m lit_pretrain fit --config {config}"
        " --resume auto",
    ]
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    write_file(out / SCRIPT, "\n".join(script) + "\n")
    return out / SCRIPT


def _text(launcher: str, words: Sequence[str]) -> str:
    return f"{launcher.strip()} {shlex.join(words)}".strip()


class Local:
    """Train runs in processes of this machine, a few at a time.

    Each process has a session of its own and writes its output to a file.

    Args:
        settings: Settings of the sweep.
        devices: Devices of each run by its name, in the order in which to train them.
        alike: Whether a mistake in one run is one in all of them, so that the rest need not start.
    """

    def __init__(
        self, settings: LaunchSettings, devices: Mapping[str, int], *, alike: bool
    ) -> None:
        self.settings, self.devices, self.alike = settings, devices, alike
        self.out = Path(settings.out)
        self._waiting = list(devices)
        self._total = len(devices)
        self._running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._failed: list[tuple[str, int]] = []
        self._stopped = 0
        self._lock: IO[str] | None = None

    def run(self) -> None:
        """Train all runs; a signal stops them at their next step, and they save themselves.

        Raises:
            UserError: Some runs failed, a signal stopped them, or another sweep is active here.
        """
        (self.out / LOGS).mkdir(parents=True, exist_ok=True)
        # The processes of the runs hold the lock, too: those that a killed sweep left behind still
        # write into its folders.
        with (self.out / LOCK).open("a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"runs of {self.out} are being made by another sweep, or by processes that one"
                    f" has left behind (`fuser {self.out / LOCK}` names them); wait for them"
                ) from None
            self._lock = lock
            before = {
                number: signal.signal(number, self._stop)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
            }
            try:
                while self._running or (self._waiting and not self._stopped):
                    self._step()
            finally:
                for process, _ in self._running.values():
                    process.terminate()
                for number, handler in before.items():
                    signal.signal(number, handler)
        self._conclude()

    def _step(self) -> None:
        """Start the runs for which there is room, wait a moment, and report those that ended."""
        while self._waiting and not self._stopped and len(self._running) < self.settings.jobs:
            self._start(self._waiting.pop(0))
        time.sleep(_POLL_SECONDS)
        for name, (process, began) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[name]
            said = _last_line(self._log(name))
            print(
                (
                    f"{name}: {said} ({clock(time.monotonic() - began)})"
                    if code == 0
                    else f"{name}: exit code {code}: {said}"
                ),
                flush=True,
            )
            # A launcher may die of the signal while its run saves itself: that is no failure.
            if code != 0 and not self._stopped:
                self._failed.append((name, code))
                if code == 2 and self.alike:
                    self._waiting.clear()

    def _start(self, name: str) -> None:
        """Start the process of one run, with its output in its log file."""
        assert self._lock is not None
        words = [
            *shlex.split(self.settings.launcher),
            *training_command(
                self.out / CONFIGS / f"{name}.yaml", self.devices[name], launched=False
            ),
        ]
        threads = self.settings.threads or max(1, (os.cpu_count() or 1) // self.settings.jobs)
        with self._log(name).open("ab") as log:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                    start_new_session=True,
                    pass_fds=(self._lock.fileno(),),
                )
            except OSError as error:
                raise UserError(
                    f"launcher: {words[0]!r} cannot be started: {error.strerror or error}"
                ) from None
        self._running[name] = process, time.monotonic()
        print(f"{name}: {self._total - len(self._waiting)} of {self._total}", flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = number
        for process, _ in self._running.values():
            os.killpg(process.pid, signal.SIGTERM)  # the launcher and all its processes

    def _log(self, name: str) -> Path:
        return self.out / LOGS / f"{name}.log"

    def _conclude(self) -> None:
        """Raise an error if runs failed or a signal stopped the sweep."""
        if self._failed:
            listed = "; ".join(
                f"{name} (exit code {code}): {_last_line(self._log(name))}"
                for name, code in self._failed
            )
            raise Unfinished(
                f"{len(self._failed)} of {self._total} runs failed: {listed}. Their output is in"
                f" {self.out / LOGS}",
                1,
            )
        if self._stopped:
            raise Unfinished(
                f"stopped by {signal.Signals(self._stopped).name}; what was being made has saved"
                " itself: the same command goes on",
                INTERRUPTED_EXIT_CODE if self._stopped == signal.SIGINT else PREEMPTED_EXIT_CODE,
            )


def _last_line(log: Path) -> str:
    """Return the last line that a run has printed."""
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1].strip() if lines else "it said nothing"
