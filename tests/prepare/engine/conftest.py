"""The command line with a small corpus of many parts, and a real Slurm on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of 6 kB."""
    folder = tmp_path_factory.mktemp("texts")
    for n in range(40):
        (folder / f"{n:03d}.txt").write_text("".join(f"Sentence {n} {k * n % 1009} of a story that goes on.\n" for k in range(150)))
    return folder


def _prepare(texts: Path, out: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sizes = ["--tokenizer.vocab_size=300", "--chunk_tokens=8000", "--part_bytes=60000"]
    command = [sys.executable, "-m", "lit_pretrain", "prepare", f'--sources={{"a": {{"kind": "text", "path": "{texts}"}}}}', *sizes]
    return subprocess.run(
        [*command, f"--out={out}", *extra], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300, env=os.environ | environment
    )


@pytest.fixture(scope="session")
def prepare() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """(texts, out, *options, **environment): `lit_pretrain prepare` over the corpus in five parts."""
    return _prepare


@pytest.fixture(scope="session")
def local(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("local") / "data"
    done = _prepare(texts, out, "--workers=1")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm that runs on this machine alone, for the time of the tests."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"no Slurm here: {', '.join(missing)} missing (Debian: slurmctld slurmd slurm-client munge)")
    # Not below pytest's own folder: a socket's path has at most 107 characters.
    folder = Path(f"/tmp/lit_pretrain_slurm.{os.getpid()}")
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    host, user = socket.gethostname(), subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    ports = [free_port(), free_port()]
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    munge = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in ("key-file", "pid-file", "log-file", "seed-file")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    processes, logs = [], []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.log").open("w")
            logs.append(log)
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            time.sleep(0.5)
        begin = time.monotonic()
        while "idle" not in subprocess.run(["sinfo"], capture_output=True, text=True, check=False, env=environment).stdout:
            if time.monotonic() - begin > 30:
                said = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in folder.glob("*.log"))
                pytest.fail(f"Slurm did not come up:\n{said}")
            time.sleep(0.2)
        yield {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)
        for log in logs:
            log.close()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
