"""Losses with moments in bf16 relative to fp32, from the same weights and data.

    python scripts/half_moments.py                # 300 steps of a network of 0.1 M parameters

A small network learns the bytes of Python's standard library, with each optimizer in three ways:
moments in fp32, in bf16 rounded at random, and in bf16 rounded to the nearest. What is printed is
the mean loss of the last 50 steps. Seeds differ in weights and data.
"""

import argparse
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.optim import AdamW, MuonAdamW, half_moments, muon
from lit_pretrain.roles import parameter_roles

ROWS, T, LAST = 16, 64, 50
RECIPES: dict[str, Callable[..., Any]] = {
    "AdamW, betas 0.9 0.95": lambda **more: AdamW(lr=3e-3, **more),
    "AdamW, betas 0.9 0.999": lambda **more: AdamW(lr=3e-3, betas=(0.9, 0.999), **more),
    "Muon": MuonAdamW,
}
WAYS = ("fp32", "bf16 at random", "bf16 nearest")


def text() -> Tensor:
    """Read the standard library of the Python that runs this."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(
        bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8
    )


def nearest(state: dict[str, Any], name: str, value: Tensor, noise: Any) -> None:
    """Round as a cast does."""
    half_moments.local(state[name]).copy_(value)


def train(make: Callable[..., Any], way: str, data: Tensor, steps: int, seed: int) -> float:
    """Train, and return the mean loss of the last steps."""
    net = Transformer(ModelConfig(vocab_size=256, n_layer=2, width=64, n_head=4, max_seq_len=T))
    net.reset_parameters(torch.Generator().manual_seed(seed))
    named = list(net.named_parameters())
    recipe = make(moment_dtype=None if way == "fp32" else "bf16")
    optimizer = recipe.build(named, parameter_roles(net))
    draw = torch.Generator().manual_seed(seed)
    doc = torch.zeros(ROWS, T, dtype=torch.int32)
    losses = []
    for step in range(steps):
        begin = torch.randint(0, len(data) - T - 1, (ROWS, 1), generator=draw)
        rows = data[begin + torch.arange(T + 1)].long()
        scores = LabelScores(net(rows[:, :-1], doc), net.head_weight, rows[:, 1:].contiguous())
        total, _ = scores.cross_entropy()
        optimizer.zero_grad()
        (total / (ROWS * T)).backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        optimizer.step()
        losses.append(float(total.detach()) / (ROWS * T))
    return sum(losses[-LAST:]) / LAST


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    at_random, data = half_moments.store_moment_, text()
    for name, make in RECIPES.items():
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for seed in range(options.seeds):
            for way in WAYS:
                store = nearest if way == "bf16 nearest" else at_random
                half_moments.store_moment_ = muon.store_moment_ = store  # type: ignore[attr-defined]
                found[way].append(train(make, way, data, options.steps, seed))
        fp32 = found["fp32"]
        print(f"{name}: fp32 {sum(fp32) / len(fp32):.4f}", flush=True)
        for way in WAYS[1:]:
            apart = [a - b for a, b in zip(found[way], fp32, strict=True)]
            each = " ".join(f"{x:+.4f}" for x in apart)
            print(f"  {way}: {sum(apart) / len(apart):+.4f} ({each})", flush=True)


if __name__ == "__main__":
    main()
