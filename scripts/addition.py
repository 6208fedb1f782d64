"""Addition: what reinforcement learning adds to fine-tuning.

And what it does where the reward knows nothing.

    python scripts/addition.py                      # three seeds, a few minutes on two CPU cores
    python scripts/addition.py --seeds 0 --steps 60 --runs runs/addition-short

For each seed, all through the command line: a small network learns sums of two numbers of two
digits from nothing (`fit`, configs/posttrain/addition_sft.yaml), goes on with GRPO (`posttrain`,
configs/posttrain/grpo.yaml), and, as a control, with GRPO whose rewards are coins. The accuracy is
that of one sampled (and one greedy) answer to each of the sums that were held out from all of them.
Exits with 1 unless GRPO gains at least ten points over the seeds and the control none.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "configs" / "posttrain"
COINS = "{coin: {path: Random}, answer: {path: ExactAnswer, weight: 0.0}}"
"""Rewards of the control; the true one is reported, but weighs nothing."""
GAIN = 0.10


def cli(*arguments: object) -> None:
    """Run one command; say what it said if it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "lit_pretrain", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nfailed with {done.returncode}:\n{done.stdout}{done.stderr}")


def make_tokenizer(data: Path) -> None:
    """Prepare a text of digits and signs, for its tokenizer.

    Its ids are bytes and two pairs of them (" +", " ="), so that a digit is a token.
    """
    if (data / "manifest.json").exists():
        return
    data.parent.mkdir(parents=True, exist_ok=True)
    text = data.parent / f"{data.name}.jsonl"
    text.write_text(
        "".join(
            json.dumps({"text": f"{a} + {b} = {a + b}"}) + "\n"
            for a in range(100)
            for b in range(0, 100, 7)
        )
    )
    sources = {
        "sums": {
            "kind": "jsonl",
            "path": str(text),
            "licence": "CC0-1.0",
            "origin": "made by scripts/addition.py",
        }
    }
    cli(
        "prepare",
        "--out",
        data,
        "--sources",
        json.dumps(sources),
        "--tokenizer.vocab_size",
        262,
        "--workers",
        1,
    )


def accuracy(run: Path, tasks: Path, *, seed: int, greedy: bool) -> float:
    """Share of the held-out sums that a run gets right."""
    figures = run / f"accuracy-{'greedy' if greedy else 'sampled'}.json"
    options = ["--model.rollout.temperature", 0] if greedy else []
    cli(
        "validate", "--run", run, "--config", tasks, "--data.init_args.tokenizer", run,
        "--model.seed", seed,
        "--trainer.accelerator", "cpu", "--json", figures, *options,
    )  # fmt: skip
    return float(json.loads(figures.read_text())["val/rewards/answer"])


def one_seed(
    seed: int, options: argparse.Namespace, extra: list[str]
) -> dict[str, dict[str, float]]:
    """Fine-tune, reinforce, and reinforce by coins; accuracies by stage."""
    runs: Path = options.runs
    common = [
        "--runs",
        runs,
        "--model.seed",
        seed,
        "--data.init_args.seed",
        seed,
        "--trainer.accelerator",
        "cpu",
    ]
    names = {stage: f"{stage}-{seed}" for stage in ("sft", "grpo", "coins")}
    seconds = {}
    grpo = [
        "posttrain",
        "--from",
        runs / names["sft"],
        "--config",
        CONFIGS / "grpo.yaml",
        *common,
        "--max_steps",
        options.steps,
        *extra,
    ]
    commands: dict[str, list[Any]] = {
        "sft": [
            "fit",
            "--config",
            CONFIGS / "addition_sft.yaml",
            *common,
            "--data.init_args.tokenizer",
            options.data,
        ],
        "grpo": grpo,
        "coins": [*grpo, "--model.rollout.rewards", COINS],
    }
    for stage, command in commands.items():
        began = time.perf_counter()
        if not (runs / names[stage]).exists():
            cli(*command, "--name", names[stage])
        seconds[stage] = time.perf_counter() - began
    config = yaml.safe_load((CONFIGS / "grpo.yaml").read_text())
    tasks = runs / "tasks.yaml"
    tasks.write_text(
        yaml.safe_dump(
            {
                "model": {name: config["model"][name] for name in ("objective", "rollout")},
                "data": config["data"],
            }
        )
    )
    found: dict[str, dict[str, float]] = {}
    for stage, name in names.items():
        sampled, greedy = (
            accuracy(runs / name, tasks, seed=seed, greedy=greedy) for greedy in (False, True)
        )
        found[stage] = {"sampled": sampled, "greedy": greedy, "seconds": seconds[stage]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of GRPO")
    parser.add_argument(
        "--data", type=Path, default=Path("data/addition"), help="where the tokenizer is prepared"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/addition"))
    options, extra = parser.parse_known_args()
    began = time.perf_counter()
    make_tokenizer(options.data)
    print(f"{'seed':>4}  {'after':6} {'sampled':>8} {'greedy':>8} {'seconds':>8}")
    gains: dict[str, list[float]] = {"grpo": [], "coins": []}
    for seed in options.seeds:
        found = one_seed(seed, options, extra)
        for stage, values in found.items():
            print(
                f"{seed:4d}  {stage:6} {values['sampled']:8.3f} {values['greedy']:8.3f}"
                f" {values['seconds']:8.1f}",
                flush=True,
            )
        for stage, gain in gains.items():
            gain.append(found[stage]["sampled"] - found["sft"]["sampled"])
    mean = {stage: statistics.mean(values) for stage, values in gains.items()}
    print(
        f"gain in sampled accuracy over {len(options.seeds)} seeds: GRPO {mean['grpo']:+.3f},"
        f" random rewards {mean['coins']:+.3f}"
    )
    print(f"{time.perf_counter() - began:.0f} s in all")
    if mean["grpo"] < GAIN or mean["coins"] >= GAIN:
        sys.exit(f"expected: GRPO at least {GAIN:+.2f}, random rewards less")


if __name__ == "__main__":
    main()
