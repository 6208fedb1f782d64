"""Copying: tell whether networks have learned to repeat what stands earlier in the row.

    python scripts/copying.py runs/race/base-240s-0 runs/race/first-240s-0

A row of random tokens is followed by itself. Of the first half nothing can be known; a network that
looks for what followed a token before has a lower loss on the second (Olsson et al. 2022,
"In-context Learning and Induction Heads"). Printed are the mean losses of both in nats a token.

Axes: B rows, T tokens, V vocabulary.
"""

import argparse
from pathlib import Path

import torch

import lit_pretrain

SPECIAL = 300
"""Ids from here on: none of the special tokens and single bytes, which stand alone in no text."""


def copying_losses(run: Path, *, rows: int, length: int, seed: int) -> tuple[float, float]:
    """Return the loss of random tokens, and that of the same tokens again behind them."""
    loaded = lit_pretrain.load(run)
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(
        min(SPECIAL, loaded.tokenizer.vocab_size // 2), loaded.tokenizer.vocab_size,
        (rows, length), generator=generator,
    ).repeat(1, 2)  # fmt: skip
    with torch.inference_mode():
        logits_BTV = loaded.logits(ids_BT).float()
    loss_BT = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none"
    )
    # The first token of the second half follows from nothing, either.
    return loss_BT[:, : length - 1].mean().item(), loss_BT[:, length:].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens before they repeat")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'run':32} {'first':>7} {'again':>7}")
    for run in options.runs:
        first, again = copying_losses(
            run, rows=options.rows, length=options.length, seed=options.seed
        )
        print(f"{run.name:32} {first:7.3f} {again:7.3f}", flush=True)


if __name__ == "__main__":
    main()
