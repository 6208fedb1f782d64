"""Regret of the published rules for batch and learning rate, on the public runs of the Step Law.

    python scripts/batch_rules.py dense_lr_bs_loss.csv

The table is `data/dense_lr_bs_loss.csv` of github.com/step-law/steplaw, which has no licence and so
is not part of this repository: columns N (parameters without embeddings), D (tokens), lr, bs (rows
of 2,048 tokens) and "smooth loss". In each setting of N and D a rule is judged by the run whose
batch and rate are nearest to its own, in logarithms: its regret is how far that run's loss lies
above the best of the setting. `plan` shows these figures.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from lit_pretrain.scaling.batch_rules import recommendations

ROW = 2048
"""Tokens of a row in the table."""


class Run(NamedTuple):
    """One run of a setting."""

    lr: float
    batch_tokens: float
    loss: float


def read_settings(table: Path) -> dict[tuple[float, float], list[Run]]:
    """Read the runs of every setting of N and D."""
    settings: dict[tuple[float, float], list[Run]] = defaultdict(list)
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            loss = float(row["smooth loss"] or "nan")
            if math.isfinite(loss):
                run = Run(float(row["lr"]), float(row["bs"]) * ROW, loss)
                settings[float(row["N"]), float(row["D"])].append(run)
    return dict(settings)


def regrets(settings: dict[tuple[float, float], list[Run]]) -> dict[str, list[float]]:
    """Compute the regret of every rule in every setting, as shares of the best loss."""
    found: dict[str, list[float]] = defaultdict(list)
    for (n, d), runs in settings.items():
        best = min(run.loss for run in runs)
        for rule in recommendations(n, d):
            assert rule.lr is not None
            lr, batch = rule.lr, rule.batch_tokens
            nearest = min(
                runs,
                key=lambda run: math.hypot(
                    math.log(run.lr / lr), math.log(run.batch_tokens / batch)
                ),
            )
            found[rule.name].append(nearest.loss / best - 1)
    return dict(found)


def main() -> None:
    """Print the regret of every rule, that with the least first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    settings = read_settings(parser.parse_args().table)
    print(f"{sum(map(len, settings.values())):,} runs in {len(settings)} settings")
    ranked = sorted(regrets(settings).items(), key=lambda item: sum(item[1]))
    for name, found in ranked:
        print(f"{name:12}  mean {sum(found) / len(found):.2%}  at most {max(found):.2%}")


if __name__ == "__main__":
    main()
