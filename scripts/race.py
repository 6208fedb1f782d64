"""Race: several recipes train for the same wall time on the same tokens and are judged on the same held-out text.

    python scripts/race.py --data data/embedded --seconds 240
    python scripts/race.py --configs configs/pretrain/quickstart.yaml configs/pretrain/llama_adamw.yaml --seconds 60

Each recipe is first timed in short interleaved runs (A B C A B C ...), whose median step decides how many steps fit into
the time: schedules need to know their end. Then each runs once in full, through `lit_pretrain fit`, one after the other.
The table shows steps, tokens, training seconds (validation and checkpoints excluded) and validation bits per byte.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIGS = ["configs/pretrain/quickstart.yaml", "configs/pretrain/nanochat.yaml", "configs/pretrain/llama_adamw.yaml"]


def fit(config: str, *, name: str, runs: str, data: str, steps: int, extra: list[str]) -> list[dict[str, Any]]:
    """Run one recipe for some steps; returns the lines of its metrics."""
    command = [
        sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit", "--config", config, "--data.path", data,
        "--runs", runs, "--name", name,
        "--max_tokens", "null", "--max_flops", "null", "--max_steps", str(steps),
        "--validate_every", "0", "--checkpoint_every", "0", "--sample_prompts", "[]", "--log_every", "5", *extra,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nfailed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return [json.loads(line) for line in (Path(runs) / name / "metrics.jsonl").read_text().splitlines()]


def step_seconds(lines: list[dict[str, Any]]) -> float:
    """Median seconds per step, without the first window (which compiles)."""
    return statistics.median(float(line["time/step_seconds"]) for line in lines[1:] if "time/step_seconds" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--data", default="data/embedded")
    parser.add_argument("--seconds", type=float, default=240.0, help="training time of each recipe")
    parser.add_argument("--repeats", type=int, default=2, help="timing runs of each recipe")
    parser.add_argument("--runs", help="keep the run folders here")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or scratch
        common = {"runs": runs, "data": options.data, "extra": ["--data.val_tokens", "null", *extra]}
        timings: dict[str, list[float]] = {config: [] for config in options.configs}
        for repeat in range(options.repeats):
            for i, config in enumerate(options.configs):
                lines = fit(config, name=f"time-{i}-{repeat}", steps=25, **common)
                timings[config].append(step_seconds(lines))
                print(f"timing {config}: {timings[config][-1]:.3f} s a step", flush=True)
        print(f"\n{'recipe':44} {'params':>8} {'steps':>6} {'tokens':>8} {'seconds':>8} {'nats':>7} {'bits/byte':>9}")
        for i, config in enumerate(options.configs):
            steps = round(options.seconds / statistics.median(timings[config]))
            lines = fit(config, name=f"race-{i}", steps=steps, **common)
            final = next(line for line in reversed(lines) if "val/loss" in line)
            train = [line for line in lines if "time/step_seconds" in line]
            # The first window holds the compilation, which a run pays once whatever its length: its steps count at the median.
            seconds = steps * step_seconds(lines)
            facts = json.loads((Path(runs) / f"race-{i}" / "provenance.json").read_text())
            print(
                f"{config:44} {facts['parameters']['total'] / 1e6:7.1f}M {steps:6d} "
                f"{train[-1]['progress/tokens'] / 1e6:7.2f}M {seconds:8.1f} "
                f"{final['val/loss']:7.4f} {final['val/bits_per_byte']:9.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
