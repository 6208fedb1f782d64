"""The table at the end of scripts/chain.sh: what each stage changed on rows that it did not see.

python scripts/chain_table.py runs/chain/measured
"""

import json
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

LINES = (
    (
        "sft", "loss on held-out answers, nats per token",
        "instructions-before", "instructions-after", "val/loss",
    ),
    (
        "dpo", "held-out pairs whose better answer is the likelier one per token",
        "ranking-before", "ranking-after", "val/rewards/accuracy",
    ),
    (
        "dpo", "held-out pairs whose better answer gained more over the reference",
        None, "preferences-after", "val/rewards/accuracy",
    ),
    ("lora", "perplexity of held-out solutions", "problems-before", "problems-after", "perplexity"),
    ("merge", "the same, adapter merged", "problems-after", "problems-merged", "perplexity"),
    (
        "base → merged", "held-out text of pretraining, bits per byte",
        "base-evaluated", "merged-evaluated", "held_out",
    ),
    (
        "base → merged", "questions with two answers, share of right ones",
        "base-evaluated", "merged-evaluated", "choices",
    ),
)  # fmt: skip


def figure(folder: Path, name: str, key: str) -> float:
    found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if key == "held_out":
        return float(found["held_out"]["all"]["bits_per_byte"])
    if key == "choices":
        return float(found["tasks"]["choices"]["metrics"]["acc_norm"])
    return math.exp(found["val/loss"]) if key == "perplexity" else float(found[key])


def main(folder: Path) -> None:
    table = Table("stage", "what", box=None, pad_edge=False)
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for stage, what, before, after, key in LINES:
        shown = "" if before is None else f"{figure(folder, before, key):.4f}"
        table.add_row(stage, what, shown, f"{figure(folder, after, key):.4f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
