"""What only a GPU can show, in eight minutes: tests, speed, a run, decoding; one JSON, one page.

    python scripts/gpu_day.py --out gpu_day          # on a machine with one GPU
    python scripts/gpu_day.py --out gpu_day --cpu    # a dry run: toy sizes, figures mean nothing

Every part is a process with a time limit, and results are written after each, so that a machine
that is taken away leaves what was found. The exit code is 1 if a part failed. Without `--data` the
text of the installed packages is prepared first. Parts, in order of what they tell:

- machine: versions, the device, the rate of a large matrix product in bf16;
- tests: those marked `gpu` (kernels against the plain formula, compiler, memory against the plan,
  a resume, decoding);
- bench: a step of the 1 B class beside bare loops, MFU against the measured product
  (scripts/bench.py);
- fit: a run through the command line, whose curves TensorBoard's reader finds again;
- decoding: tokens a second beside transformers (scripts/bench_generate.py).
"""

import argparse
import html
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMITS = {"machine": 60, "data": 90, "tests": 150, "bench": 150, "fit": 90, "decoding": 60}
"""Seconds that each part may take. They are ten minutes in all, so the last parts may not begin."""
WHOLE = 8 * 60
"""Seconds after which no further part begins."""

MACHINE = """
import json, time, torch, lightning, lit_pretrain
device = "cuda" if torch.cuda.is_available() and not {cpu} else "cpu"
n = 8192 if device == "cuda" else 512
a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
times = []
for _ in range(30 if device == "cuda" else 3):
    wait(); began = time.perf_counter(); a @ a; wait()
    times.append(time.perf_counter() - began)
times.sort()
found = {{"device": "cpu", "product_tflops": 2 * n**3 / times[len(times) // 2] / 1e12}}
if device == "cuda":
    found["device"] = torch.cuda.get_device_name()
    found["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
for package in (torch, lightning, lit_pretrain):
    found[package.__name__] = package.__version__
print(json.dumps(found))
"""
CURVES = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from pathlib import Path
files = sorted(Path(sys.argv[1]).rglob("events.out.tfevents.*"))
found = {}
for folder in {file.parent for file in files}:
    events = EventAccumulator(str(folder)); events.Reload()
    for tag in events.Tags()["scalars"]:
        found[tag] = [event.value for event in events.Scalars(tag)]
losses = found["Loss/train/loss"]
assert losses[-1] < losses[0], losses
print(json.dumps({"curves": len(found), "first_loss": losses[0], "last_loss": losses[-1]}))
"""


class Day:
    """The parts that ran, with what each printed.

    Args:
        out: Folder of the results.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.began = time.monotonic()
        self.parts: dict[str, dict[str, Any]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, command: list[str], **environment: str) -> str | None:
        """Run a part unless the time is over; return what it printed, or None if it failed."""
        left = WHOLE - (time.monotonic() - self.began)
        if left <= 0:
            self._keep(name, command, "not begun", 0.0, "the time was over")
            return None
        began = time.monotonic()
        limit = min(LIMITS[name], left)
        try:
            done = subprocess.run(
                command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=limit,
                env=os.environ | environment,
            )  # fmt: skip
            printed, ended = done.stdout + done.stderr, done.returncode
            state = "right" if ended == 0 else f"exit code {ended}"
        except subprocess.TimeoutExpired as stopped:
            parts = (stopped.stdout or b"", stopped.stderr or b"")
            printed = "".join(
                p.decode(errors="replace") if isinstance(p, bytes) else p for p in parts
            )
            state, done = f"stopped after {limit:.0f} s", None
        self._keep(name, command, state, time.monotonic() - began, printed)
        return done.stdout if done is not None and done.returncode == 0 else None

    def note(self, name: str, figures: dict[str, Any]) -> None:
        """Add figures to a part."""
        self.parts[name]["figures"] = figures
        self._write()

    def _keep(
        self, name: str, command: list[str], state: str, seconds: float, printed: str
    ) -> None:
        self.parts[name] = {
            "command": command, "state": state, "seconds": round(seconds, 1),
            "printed": printed[-20_000:], "figures": {},
        }  # fmt: skip
        print(f"{name:10} {state:22} {seconds:6.1f} s", flush=True)
        self._write()

    def _write(self) -> None:
        (self.out / "gpu_day.json").write_text(json.dumps(self.parts, indent=1) + "\n")
        rows = "".join(
            f"<tr><td>{name}<td>{html.escape(part['state'])}<td>{part['seconds']} s<td>"
            + "<br>".join(f"{key}: {value}" for key, value in part["figures"].items())
            for name, part in self.parts.items()
        )
        details = "".join(
            f"<h2>{name}</h2><pre>{html.escape(part['printed'])}</pre>"
            for name, part in self.parts.items()
        )
        (self.out / "gpu_day.html").write_text(
            "<!doctype html><meta charset=utf-8><title>GPU day</title><style>body{font-family:"
            "sans-serif;margin:2em}td{padding:.3em 1em;vertical-align:top}pre{overflow:auto}"
            f"</style><h1>GPU day</h1><table>{rows}</table>{details}\n"
        )

    @property
    def right(self) -> bool:
        """Whether every part ended well."""
        return all(part["state"] == "right" for part in self.parts.values())


def figures_of_bench(printed: str) -> dict[str, Any]:
    """Read the rows and the MFU that scripts/bench.py prints."""
    found: dict[str, Any] = {}
    for name, rate, best, same in re.findall(
        r"^(bare \S+(?: \+docs)?|lit_pretrain fit) +([\d,]+) +([\d.]+) +([\d.]+) ", printed, re.M
    ):
        found[name] = f"{rate} tokens/s, {best} of the best bare loop, {same} of the same work"
    mfu = re.search(r"MFU against the measured matmul rate: ([\d.]+%)", printed)
    return found | ({"MFU of the measured product": mfu[1]} if mfu else {})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_day"), help="folder of the results")
    parser.add_argument("--data", type=Path, help="a prepared dataset")
    parser.add_argument("--cpu", action="store_true", help="dry run on a CPU, with toy sizes")
    parser.add_argument("--parts", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    options = parser.parse_args()
    out, cpu, python = options.out.resolve(), options.cpu, [sys.executable, "-W", "ignore"]
    day = Day(out)
    program = [*python, "-m", "lit_pretrain"]
    parts = set(options.parts)
    data = options.data.resolve() if options.data else out / "data"

    if "machine" in parts:
        printed = day.run("machine", [*python, "-c", MACHINE.format(cpu=cpu)])
        if printed is not None:
            day.note("machine", json.loads(printed.splitlines()[-1]))
    if "data" in parts and options.data is None:
        prepare = [*program, "prepare", "--config", "configs/prepare/embedded.yaml"]
        day.run("data", [*prepare, "--out", str(data)])
    if "tests" in parts:
        command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu",
                   "tests/test_gpu.py"]  # fmt: skip
        printed = day.run("tests", command, GPU_TESTS_ON="cpu" if cpu else "cuda")
        if printed is not None:
            day.note("tests", {"pytest": printed.strip().splitlines()[-1]})
    if "bench" in parts:
        size = ["--tiny", "--steps", "2"] if cpu else ["--steps", "20"]
        command = [*python, "scripts/bench.py", *size, "--precision", "bf16-mixed"]
        printed = day.run("bench", [*command, "--data", str(data)])
        if printed is not None:
            day.note("bench", figures_of_bench(printed))
    if "fit" in parts:
        size = (
            ["--model.net.n_layer", "1", "--model.net.width", "96", "--model.compile", "off"]
            if cpu
            else []
        )
        command = [
            *program, "fit", "--config", "configs/pretrain/quickstart.yaml", "--data.path",
            str(data), "--runs", str(out / "runs"), "--name", f"day-{time.time_ns()}",
            "--max_steps", "8" if cpu else "120", "--log_every", "1", "--trainer.devices", "1",
            "--trainer.accelerator", "cpu" if cpu else "gpu", *size,
        ]  # fmt: skip
        if day.run("fit", command) is not None:
            run = command[command.index("--name") + 1]
            read = [*python, "-c", CURVES, str(out / "runs" / run)]
            found = subprocess.run(read, check=False, capture_output=True, text=True)
            if found.returncode:
                day.parts["fit"]["state"] = f"no curves: {found.stderr.strip().splitlines()[-1]}"
            day.note("fit", json.loads(found.stdout) if found.returncode == 0 else {})
    if "decoding" in parts:
        size = ["--tiny", "--new", "8", "--rounds", "1"] if cpu else ["--new", "128"]
        printed = day.run("decoding", [*python, "scripts/bench_generate.py", *size])
        if printed is not None:
            rows = [line.split() for line in printed.splitlines()]
            day.note(
                "decoding",
                {
                    f"{row[0]}, {row[1]} rows": f"{row[3]} tokens/s, {row[5]} of transformers'"
                    for row in rows
                    if row and row[0] in ("float32", "bfloat16") and len(row) > 5
                },
            )
    print(f"{out / 'gpu_day.html'} and gpu_day.json after {time.monotonic() - day.began:.0f} s")
    return 0 if day.right else 1


if __name__ == "__main__":
    sys.exit(main())
