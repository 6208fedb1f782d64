"""The command line with every step over a small corpus of many parts, and a real Slurm on this
machine.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


QUESTION = "Which of the nine rivers of the old kingdom was crossed by the lame ferryman first?"
FILTER = """
import os, signal, time

def fault(document, view):
    kind, _, argument = os.environ.get("ENGINE_FAULT", "").partition(":")
    if kind and document.text.startswith("Sentence 17 "):
        if kind == "raise":
            raise KeyError("no such word")
        try:
            os.close(os.open(argument, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return True
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return True
"""
"""A filter by class path, for which one document is the end: it raises, or the first time kills
its process or sleeps.
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with every step, over 30 files of 6 kB and a table in two files that share ids;
    a filter of its own.
    """
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts").mkdir()
    stories = [
        "".join(
            f"Sentence {n} and {k * n % 1009} of a story that goes on.\n" for k in range(1, 120)
        )
        for n in range(30)
    ]
    for n, story in enumerate(stories):
        notice = "This line stands at the end of every file.\nWrite to jane.doe@acme.com today.\n"
        (folder / "texts" / f"{n:03d}.txt").write_text(story + notice)
    (folder / "texts" / "copy.txt").write_text((folder / "texts" / "003.txt").read_text())
    (folder / "texts" / "short.txt").write_text("Too short.")
    (folder / "texts" / "leak.txt").write_text(f"{stories[4]} {QUESTION}")
    lines_of = [story.replace("Sentence", "Paragraph") for story in stories]
    for name, rows in (("a", range(20)), ("b", range(10, 30))):
        lines = [
            json.dumps({"text": f"Row {n} of table {name}. {lines_of[n]}", "key": f"id-{n}"}) + "\n"
            for n in rows
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "exam.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    (folder / "engine_faults.py").write_text(FILTER)
    config = {
        "sources": {
            "texts": {"kind": "text", "path": str(folder / "texts")},
            "table": {
                "kind": "jsonl",
                "path": [str(folder / "a.jsonl"), str(folder / "b.jsonl")],
                "fields": {"id": "key"},
            },
        },
        "filters": ["engine_faults.fault", {"class_path": "GopherQuality", "init_args": {}}],
        "dedup": {
            "exact": True,
            "near": {"threshold": 0.9},
            "containment": {},
            "lines": {"min_words": 5},
        },
        "decontaminate": {
            "against": {"exam": {"path": str(folder / "exam.jsonl"), "fields": ["question"]}}
        },
        "pii": {},
        "tokenizer": {"vocab_size": 320},
        "chunk_tokens": 8000,
        "part_bytes": 90_000,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def command(corpus: Path, out: Path, *extra: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "lit_pretrain",
        "prepare",
        "--config",
        str(corpus / "config.yaml"),
        f"--out={out}",
        *extra,
    ]


def surroundings(corpus: Path, **environment: str) -> dict[str, str]:
    path = os.pathsep.join([str(corpus), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | environment


def _prepare(
    corpus: Path, out: Path, *extra: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(corpus, out, *extra),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=500,
        env=surroundings(corpus, **environment),
    )


@pytest.fixture(scope="session")
def prepare() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """(corpus, out, *options, **environment): `lit_pretrain prepare` with every step."""
    return _prepare


@pytest.fixture(scope="session")
def start(prepare: object) -> Callable[..., "subprocess.Popen[str]"]:
    """The same, begun and not waited for."""

    def begin(corpus: Path, out: Path, *extra: str, **environment: str) -> "subprocess.Popen[str]":
        env = surroundings(corpus, **environment)
        return subprocess.Popen(
            command(corpus, out, *extra), stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )

    return begin


@pytest.fixture(scope="session")
def local(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("local") / "data"
    done = _prepare(corpus, out, "--workers=1")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm that runs on this machine alone, for the time of the tests."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        pytest.skip(
            f"no Slurm here: {', '.join(missing)} missing (Debian: slurmctld slurmd slurm-client"
            " munge)"
        )
    # Not below pytest's own folder: a socket's path has at most 107 characters.
    folder = Path(f"/tmp/lit_pretrain_slurm.{os.getpid()}")
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    host, user = (
        socket.gethostname(),
        subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip(),
    )
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
    munge = [
        f"--{name}={folder}/munge.{name.removesuffix('-file')}"
        for name in ("key-file", "pid-file", "log-file", "seed-file")
    ]
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
        while (
            "idle"
            not in subprocess.run(
                ["sinfo"], capture_output=True, text=True, check=False, env=environment
            ).stdout
        ):
            if time.monotonic() - begin > 30:
                said = "\n".join(
                    f"{path.name}: {path.read_text()[-500:]}" for path in folder.glob("*.log")
                )
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
