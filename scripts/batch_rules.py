"""How good the published rules for batch and learning rate are, on public runs of others.

    python scripts/batch_rules.py                        # beside the best pairs of a second grid
    python scripts/batch_rules.py dense_lr_bs_loss.csv   # and their regret on the Step Law's runs

The table is `data/dense_lr_bs_loss.csv` of github.com/step-law/steplaw, which has no licence and so
is not part of this repository: columns N (parameters without embeddings), D (tokens), lr, bs (rows
of 2,048 tokens) and "smooth loss". In each setting of N and D a rule is judged by the run whose
batch and rate are nearest to its own, in logarithms: its regret is how far that run's loss lies
above the best of the setting. `plan` shows these figures.

Of the second grid only the best pair of each setting is published (L. Lingle 2025, Scaling laws for
optimal LR and batch size, lucaslingle.substack.com: Llama with AdamW, 1,820 runs). So a
rule can be compared with it, in octaves, but has no regret.
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


OPTIMA = (
    (4.6006e7, 1.28e8, 32_768, 0.001953), (1.0905e8, 1.28e8, 32_768, 0.000977),
    (3.6805e8, 1.28e8, 65_536, 0.000691), (8.7242e8, 1.28e8, 65_536, 0.000488),
    (2.9444e9, 1.28e8, 32_768, 0.000244), (4.6006e7, 2.56e8, 65_536, 0.001953),
    (1.0905e8, 2.56e8, 65_536, 0.001381), (3.6805e8, 2.56e8, 65_536, 0.000977),
    (8.7242e8, 2.56e8, 65_536, 0.000488), (2.9444e9, 2.56e8, 65_536, 0.000345),
    (4.6006e7, 5.12e8, 65_536, 0.002762), (1.0905e8, 5.12e8, 131_072, 0.001953),
    (3.6805e8, 5.12e8, 131_072, 0.000977), (8.7242e8, 5.12e8, 131_072, 0.000691),
    (4.6006e7, 1.024e9, 131_072, 0.003906), (1.0905e8, 1.024e9, 131_072, 0.001953),
    (3.6805e8, 1.024e9, 131_072, 0.000977), (8.7242e8, 1.024e9, 131_072, 0.000691),
)  # fmt: skip
"""Parameters without embeddings, tokens, best batch in tokens and best rate of the second grid."""


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


def octaves() -> dict[str, list[tuple[float, float]]]:
    """Compute by how many octaves each rule's batch and rate lie above the best of each setting."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for n, d, batch, lr in OPTIMA:
        for rule in recommendations(n, d):
            assert rule.lr is not None
            found[rule.name].append((math.log2(rule.batch_tokens / batch), math.log2(rule.lr / lr)))
    return dict(found)


def main() -> None:
    """Print how far every rule is off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, nargs="?")
    table = parser.parse_args().table
    print(f"{len(OPTIMA)} best pairs of another grid, octaves above them: mean, furthest")
    for name, pairs in octaves().items():
        columns = (
            f"{what} {sum(values) / len(values):+.2f}, {max(values, key=abs):+.2f}"
            for what, values in zip(("batch", "rate"), zip(*pairs, strict=True), strict=True)
        )
        print(f"{name:12}  {'   '.join(columns)}")
    if table is None:
        return
    settings = read_settings(table)
    print(f"{sum(map(len, settings.values())):,} runs in {len(settings)} settings")
    ranked = sorted(regrets(settings).items(), key=lambda item: sum(item[1]))
    for name, found in ranked:
        print(f"{name:12}  mean {sum(found) / len(found):.2%}  at most {max(found):.2%}")


if __name__ == "__main__":
    main()
