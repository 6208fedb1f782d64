"""Bench of starting: how long `fit` and help take to their first line, beside Lightning's imports.

    python scripts/bench_start.py --data data/embedded

They take turns, and medians are printed. Processor time is what counts on a machine that does
other work; wall time is what a person waits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT = "import {}; print('imported', flush=True)"
CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "quickstart.yaml"


def until_first_line(command: list[str], folder: str) -> tuple[float, float]:
    """Run a command until it prints a line; return seconds of the processor and of the clock."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - began
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    if not line:
        sys.exit(f"{' '.join(command)} printed nothing")
    return used.ru_utime + used.ru_stime, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/embedded", help="a prepared dataset")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    program = [sys.executable, "-m", "lit_pretrain"]
    data = str(Path(options.data).resolve())
    commands = {
        "import lightning": [sys.executable, "-c", IMPORT.format("lightning")],
        "fit": [*program, "fit", "--config", str(CONFIG), "--data.path", data],
        "import its CLI": [sys.executable, "-c", IMPORT.format("lightning.pytorch.cli")],
        "fit --help": [*program, "fit", "--help"],
        "prepare --help": [*program, "prepare", "--help"],
    }
    for command in commands.values():  # writes byte code, and fills the cache of the disk
        with tempfile.TemporaryDirectory() as folder:
            until_first_line(command, folder)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(until_first_line(command, folder))
    print(f"{'':20} {'processor':>10} {'wall':>8}    seconds to the first line")
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in found.items()
    }
    for name, (processor, wall) in medians.items():
        print(f"{name:20} {processor:10.2f} {wall:8.2f}")
    for ours, theirs in (("fit", "import lightning"), ("fit --help", "import its CLI")):
        pairs = zip(medians[ours], medians[theirs], strict=True)
        processor, wall = (our / their for our, their in pairs)
        print(f"{f'{ours} : import':20} {processor:10.2f} {wall:8.2f}")


if __name__ == "__main__":
    main()
