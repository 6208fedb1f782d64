"""Race: several recipes train for the same wall time and are judged on held-out text.

All read the same tokens.

    python scripts/race.py --data data/embedded --seconds 240
    python scripts/race.py --seconds 60 --configs configs/pretrain/{quickstart,llama_adamw}.yaml

First all of them are timed, taking steps in turn (A B C A B C ...): the median step decides how
many steps fit into the time, and schedules need to know their end. Then each runs once in full,
through `lit_pretrain fit`, one after the other. The table shows parameters, seconds a step, steps,
tokens, and validation loss in nats per token and bits per byte. Options that are not named here go
to every run, as in --data.val_tokens 196608 --model.seed 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import Contestant, take_turns

CONFIGS = [
    "configs/pretrain/quickstart.yaml",
    "configs/pretrain/nanochat.yaml",
    "configs/pretrain/llama_adamw.yaml",
]


def command(
    config: str, *, name: str, runs: str, data: str, steps: int, extra: list[str]
) -> list[str]:
    """Write the command that runs one recipe for some steps."""
    return [
        sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit", "--config", config,
        "--data.path", data,
        "--runs", runs, "--name", name,
        "--max_tokens", "null", "--max_flops", "null", "--max_steps", str(steps),
        "--validate_every", "0", "--checkpoint_every", "0", "--sample_prompts", "[]", "--log_every",
        "5", *extra,
    ]  # fmt: skip


def fit(arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run one recipe to its end; returns the lines of its metrics."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{' '.join(arguments)}\nfailed with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def step_seconds(configs: list[str], *, runs: str, steps: int, **common: Any) -> dict[str, float]:
    """Measure the median seconds of a step of each recipe, all of them taking steps in turn."""
    contestants = {
        config: Contestant([
            *command(config, name=f"time-{i}", runs=runs, steps=10_000, **common),
            "--trainer.callbacks+=turns.TakeTurns",
        ])
        for i, config in enumerate(configs)
    }  # fmt: skip
    take_turns(contestants.values(), steps)
    for contestant in contestants.values():
        contestant.kill()
    return {
        config: statistics.median(contestant.seconds) for config, contestant in contestants.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--data", default="data/embedded")
    parser.add_argument("--seconds", type=float, default=240.0, help="training time of each recipe")
    parser.add_argument(
        "--timing_steps", type=int, default=20, help="steps over which each recipe is timed"
    )
    parser.add_argument("--runs", help="keep the run folders here")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or scratch
        common = {"data": options.data, "extra": ["--data.val_tokens", "null", *extra]}
        seconds = step_seconds(options.configs, runs=scratch, steps=options.timing_steps, **common)
        print(
            f"{'recipe':40} {'params':>7} {'s/step':>6} {'steps':>6} {'tokens':>7} {'nats':>7}"
            f" {'bits/byte':>9}"
        )
        for i, config in enumerate(options.configs):
            steps = max(1, round(options.seconds / seconds[config]))
            folder = Path(runs) / f"race-{i}"
            lines = fit(command(config, name=folder.name, runs=runs, steps=steps, **common), folder)
            final = next(line for line in reversed(lines) if "val/loss" in line)
            tokens = max(line.get("progress/tokens", 0) for line in lines)
            facts = json.loads((folder / "provenance.json").read_text())
            print(
                f"{config:40} {facts['parameters']['total'] / 1e6:6.1f}M {seconds[config]:6.3f}"
                f" {steps:6d} {tokens / 1e6:6.2f}M {final['val/loss']:7.4f}"
                f" {final['val/bits_per_byte']:9.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
