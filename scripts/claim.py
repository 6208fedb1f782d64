"""The claim: at equal time, the run beside a network of half its size and one of twice its size.

    python scripts/claim.py                     # runs/quickstart beside its recorded neighbours
    python scripts/claim.py --train             # train the neighbours now, in runs/quickstart-claim
    python scripts/claim.py --train --record    # and write the record anew

Sizes are those of the parameters that work on every token: matrices and head. The neighbours take
the run's own config with another depth and width, the nearest of a grid to half and twice the size.
Three networks take steps in turn, and the seconds of each say how many steps fit into the run's
time. All are judged on the same held-out bytes. Neighbours that have been trained stay.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

import yaml

from lit_pretrain.files import write_file
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.scaling.shape_search import grid

RECORD = Path("configs/pretrain/quickstart_claim.json")
TIMED = 15
"""Steps over which the three are timed."""


class Line(TypedDict):
    """A network of the table."""

    n_layer: int
    width: int
    working: int
    """Parameters that multiply every token."""
    step_seconds: float
    """As a multiple of the run's own."""
    steps: int
    tokens: float
    bits_per_byte: float


def working(net: ModelConfig) -> int:
    """Count the parameters that work on every token."""
    return count_parameters(net).matmul


def neighbours(net: ModelConfig) -> list[ModelConfig]:
    """Return the shapes of the grid nearest to half and to twice the size of a network."""
    shapes = [shape for shape, _ in grid(net, {"": net.vocab_size})][1:]
    return [
        min(shapes, key=lambda its: abs(math.log(working(its) / working(net) / ratio)))
        for ratio in (0.5, 2.0)
    ]


def result(run: Path, ratio: float) -> Line:
    """Read what a finished run has come to."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    net = ModelConfig(**config["model"]["net"])
    lines = read_metrics(run)
    bits = [line["val/bits_per_byte"] for line in lines if "val/bits_per_byte" in line]
    if not bits or not (run / "summary.md").is_file():
        sys.exit(f"{run} has not finished: train it first")
    return {
        "n_layer": net.n_layer, "width": net.width, "working": working(net),
        "step_seconds": ratio, "steps": int(config["max_steps"]),
        "tokens": max(line.get("progress/tokens", 0.0) for line in lines),
        "bits_per_byte": bits[-1],
    }  # fmt: skip


def fit(run: Path, runs: Path, net: ModelConfig, name: str, steps: int) -> list[str]:
    """Write the command that trains the run's config with another shape."""
    return [
        sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit",
        "--config", str(run / "config.yaml"), "--runs", str(runs), "--name", name,
        "--model.net.n_layer", str(net.n_layer), "--model.net.width", str(net.width),
        "--model.net.n_head", str(net.n_head), "--max_steps", str(steps),
        "--sample_prompts", "[]",
    ]  # fmt: skip


def train(run: Path, runs: Path) -> list[Line]:
    """Time the three, and train the two neighbours for the run's time."""
    from turns import Contestant, take_turns

    own = result(run, 1.0)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    net = ModelConfig(**config["model"]["net"])
    half, twice = neighbours(net)
    file = runs / "timing.json"
    if not file.is_file():
        shutil.rmtree(runs / "timing", ignore_errors=True)  # of a timing that was stopped
        contestants = [
            Contestant([
                *fit(run, runs / "timing", shape, f"{shape.n_layer}x{shape.width}", 10_000),
                "--resume", "never", "--trainer.callbacks+=turns.TakeTurns",
            ])
            for shape in (net, half, twice)
        ]  # fmt: skip
        take_turns(contestants, TIMED)
        for contestant in contestants:
            contestant.kill()
        unit, *others = (statistics.median(each.seconds) for each in contestants)
        write_file(file, json.dumps([other / unit for other in others]) + "\n")
    found = []
    ratios = json.loads(file.read_text(encoding="utf-8"))
    for shape, ratio in zip((half, twice), ratios, strict=True):
        name = f"{shape.n_layer}x{shape.width}"
        if not (runs / name / "summary.md").is_file():
            steps = max(1, round(own["steps"] / ratio))
            command = [*fit(run, runs, shape, name, steps), "--resume", "auto"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
        found.append(result(runs / name, ratio))
    return [found[0], own, found[1]]


def same(one: Line, other: Line) -> bool:
    """Tell whether two lines are of the same network and length."""
    return all(one[name] == other[name] for name in ("n_layer", "width", "working", "steps"))


def table(lines: list[Line]) -> str:
    """Format the three networks, the smallest first."""
    names = ("half the network", "this run", "twice the network")
    rows = [f"{'at equal time':18} {'layers × width':>14} {'at work':>8} {'s/step':>7} {'steps':>6}"
            f" {'tokens':>7} {'bits per byte':>13}"]  # fmt: skip
    rows += [
        f"{name:18} {its['n_layer']:>6} × {its['width']:<5} {its['working'] / 1e6:7.2f}M"
        f" {its['step_seconds']:6.2f}× {its['steps']:6d} {its['tokens'] / 1e6:6.2f}M"
        f" {its['bits_per_byte']:13.4f}"
        for name, its in zip(names, lines, strict=True)
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--train", action="store_true", help="train the neighbours now")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD} from this run")
    options = parser.parse_args()
    if options.record and not options.train:
        parser.error("--record writes what --train has trained: give both")
    if options.train:
        lines = train(options.run, options.run.with_name(f"{options.run.name}-claim"))
        if options.record:
            content: dict[str, Any] = {
                "how": "python scripts/claim.py --train --record: one seed, steps timed in turn",
                "networks": lines,
            }
            write_file(RECORD, json.dumps(content, indent=1) + "\n")
        print(table(lines))
        return
    own = result(options.run, 1.0)
    recorded = (
        json.loads(RECORD.read_text(encoding="utf-8"))["networks"] if RECORD.is_file() else []
    )
    if not recorded or not same(recorded[1], own):
        print(
            f"{options.run} has no recorded neighbours; python scripts/claim.py --train makes them"
        )
        return
    print(table([recorded[0], own, recorded[2]]))
    print("the neighbours as recorded; bash scripts/quickstart.sh --claim trains them here")


if __name__ == "__main__":
    main()
