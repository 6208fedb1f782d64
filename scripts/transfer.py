"""Transfer: does the best learning rate stay where it is when a network grows?

    python scripts/transfer.py --data data/embedded --out runs/transfer
    python scripts/transfer.py --widths 64 128 --seeds 1 --tokens_per_parameter 0.2

Networks of several widths train on as many tokens for each parameter, with the rates of a config
times several powers of two: once with `model.transfer`, whose base is the config's own network,
batch and length, and once without. A parabola through the lowest losses of a width gives its best
rate. The table shows it in octaves from the config's, by how many octaves it moves over the widths,
and by how much the loss at the rate that is best for the smallest network exceeds the best one.

Whoever runs the same command again goes on: runs that have finished are not made again. Options
that are not named here go to every run.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lit_pretrain.__main__ import main as lit_pretrain
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.model.config import ModelConfig, count_parameters, padded_vocab_size
from lit_pretrain.report.run_folder import SUMMARY, read_metrics

ARMS = ("transfer", "control")


@dataclass(frozen=True)
class Run:
    """One network, trained once."""

    arm: str
    width: int
    power: int
    """The rates are those of the config times two to this power."""
    seed: int

    @property
    def name(self) -> str:
        """Name its folder."""
        return f"{self.arm}_w{self.width}_k{self.power:+d}_s{self.seed}"


@dataclass(frozen=True)
class Best:
    """The best rate of one width, by a parabola through the lowest losses."""

    power: float
    """In octaves from the config's rates."""
    loss: float
    curve: np.ndarray
    """Coefficients of the parabola, highest power first."""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the options, and those that go to every run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/pretrain/muon.yaml")
    parser.add_argument("--data", default="data/embedded")
    parser.add_argument("--out", default="runs/transfer")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--depth", type=int, default=4, help="blocks of every network")
    parser.add_argument("--head_dim", type=int, default=32)
    parser.add_argument("--powers", type=int, nargs="+", default=list(range(-3, 4)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens_per_parameter", type=float, default=1.0,
                        help="training tokens for each parameter that multiplies")  # fmt: skip
    parser.add_argument("--batch_tokens", type=int, default=1024)
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    return parser.parse_known_args(argv)


def steps_of(options: argparse.Namespace, width: int) -> int:
    """Count the steps in which a network sees its tokens."""
    vocabulary = Manifest.load(Path(options.data)).tokenizer.vocab_size
    own = {
        "n_layer": options.depth, "width": width, "n_head": width // options.head_dim,
        "vocab_size": padded_vocab_size(vocabulary),
    }  # fmt: skip
    parameters = count_parameters(ModelConfig(**(config_of(options)["model"]["net"] | own))).matmul
    tokens: float = options.tokens_per_parameter * parameters
    return max(1, round(tokens / int(options.batch_tokens)))


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """Read the config whose rates are carried over."""
    config: dict[str, Any] = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    return config


def base_of(config: dict[str, Any]) -> dict[str, int]:
    """Describe the network, the batch and the length at which a config's rates were found."""
    net, batch = config["model"]["net"], config["data"]["global_batch_tokens"]
    base = {"base_width": net["width"], "base_depth": net["n_layer"], "base_batch_tokens": batch}
    if "max_steps" in config:
        base["base_tokens"] = config["max_steps"] * batch
    return base


def arguments(options: argparse.Namespace, run: Run, extra: list[str]) -> list[str]:
    """Write the arguments of `lit_pretrain` that make one run."""
    config = config_of(options)
    settings = config["model"]["optimizer"]["init_args"]
    rates = {
        name: rate
        for name, rate in settings.items()
        if (name == "lr" or name.endswith("_lr")) and rate is not None
    }
    transfer = f"--model.transfer={base_of(config) if run.arm == 'transfer' else 'null'}"
    steps = steps_of(options, run.width)
    return [
        "fit", f"--config={options.config}", f"--data.path={options.data}", f"--runs={options.out}",
        f"--name={run.name}", f"--model.net.width={run.width}",
        f"--model.net.n_head={run.width // options.head_dim}",
        f"--model.net.n_layer={options.depth}", f"--model.seed={run.seed}",
        *(f"--model.optimizer.{name}={rate * 2.0**run.power}" for name, rate in rates.items()),
        transfer, f"--data.seq_len={options.seq_len}",
        f"--data.micro_batch_size={options.batch_tokens // options.seq_len}",
        f"--data.global_batch_tokens={options.batch_tokens}", f"--max_steps={steps}",
        "--validate_every=0", "--checkpoint_every=0", f"--log_every={steps}",
        "--sample_prompts=[]", "--model.compile=off", *extra,
    ]  # fmt: skip


def made(options: argparse.Namespace, runs: list[Run], extra: list[str]) -> Iterator[Run]:
    """Make the runs that are missing, and yield each when it has finished."""
    for run in runs:
        folder = Path(options.out) / run.name
        if not (folder / SUMMARY).is_file():
            shutil.rmtree(folder, ignore_errors=True)  # it was interrupted, and takes minutes
            said, began = io.StringIO(), time.perf_counter()
            with contextlib.redirect_stdout(said):
                code = lit_pretrain(arguments(options, run, extra))
            if code == 3:  # it has diverged, which is an answer
                print(f"{run.name}: diverged", flush=True)
                continue
            if code:
                sys.exit(f"{run.name} failed with {code}:\n{said.getvalue()}")
            seconds = time.perf_counter() - began
            print(f"{run.name}: {loss_of(options, run):.4f} in {seconds:.0f} s", flush=True)
        yield run


def loss_of(options: argparse.Namespace, run: Run) -> float:
    """Read the last held-out loss of a run, in nats."""
    lines = read_metrics(Path(options.out) / run.name)
    return float([line for line in lines if "val/loss" in line][-1]["val/loss"])


def best_of(losses: dict[int, float]) -> Best:
    """Fit a parabola to the lowest loss and two on each side of it."""
    powers = sorted(losses)
    centre = min(powers, key=lambda power: losses[power])
    near = [power for power in powers if abs(power - centre) <= 2]
    curve = np.polyfit(near, [losses[power] for power in near], 2)
    vertex = float(-curve[1] / (2 * curve[0])) if curve[0] > 0 else float(centre)
    vertex = min(max(vertex, near[0]), near[-1])
    return Best(vertex, float(np.polyval(curve, vertex)), curve)


def table(options: argparse.Namespace, runs: list[Run]) -> str:
    """Write losses, best rates and what a transferred rate costs, as Markdown."""
    rows = ["| | width | tokens | " + " | ".join(f"×2^{k:+d}" for k in options.powers)
            + " | best | transferred |",
            "|" + "---|" * (len(options.powers) + 5)]  # fmt: skip
    for arm in options.arms:
        found: dict[int, Best] = {}
        for width in sorted(options.widths):
            values: dict[int, list[float]] = {}
            for run in runs:
                if (run.arm, run.width) == (arm, width):
                    values.setdefault(run.power, []).append(loss_of(options, run))
            means = {power: statistics.mean(each) for power, each in values.items()}
            if len(means) < 3:
                continue
            found[width] = best = best_of(means)
            first = found[min(found)]
            over = float(np.polyval(best.curve, first.power)) / best.loss - 1
            cells = [f"{means[k]:.4f}" if k in means else "-" for k in options.powers]
            tokens = steps_of(options, width) * options.batch_tokens
            rows.append(
                f"| {arm} | {width} | {tokens:,} | {' | '.join(cells)} | {best.power:+.2f} |"
                f" {over:+.2%} |"
            )
        if found:
            powers = [best.power for best in found.values()]
            rows.append(f"| {arm} | best rate moves by | {max(powers) - min(powers):.2f} octaves |"
                        + " |" * (len(options.powers) + 2))  # fmt: skip
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    """Run what is missing, and print the table after each width."""
    options, extra = parse(argv)
    done: list[Run] = []
    for width in sorted(options.widths):
        wanted = [
            Run(arm, width, power, seed)
            for seed in range(options.seeds)
            for arm in options.arms
            for power in options.powers
        ]
        done += made(options, wanted, extra)
        print(table(options, done), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
