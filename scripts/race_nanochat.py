"""Race nanochat: train nanochat's own code on the rows that `lit_pretrain fit` reads.

    git clone https://github.com/karpathy/nanochat ../nanochat
    python scripts/race_nanochat.py --n_layer 3 --width 192 --steps 500
    python scripts/race.py --entrants configs/race/nanochat.yaml --seconds 240

Network, first weights and optimizer are imported from the checkout that --nanochat names, by its
own `GPT` and `setup_optimizer`; of its files, gpt.py, optim.py, common.py and flash_attention.py
are enough. The rules of its scripts/base_train.py (commit 03880db) are restated here: rates by the
batch, decay by batch and horizon, warm-up, warm-down, the momentum of Muon. --rates multiplies its
four rates at once.

Rows, order and labels are those of `fit` with the same data, length, batch and seed, and the loss
is measured on all held-out text, with the arithmetic of `validate`. One thing differs, because it
is nanochat's way: its attention crosses the edges of documents, when it learns and when it is
measured.

Axes: B rows, T tokens, V vocabulary.
"""

import argparse
import gc
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from turns import Turns

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.cli.train.precision import default_precision
from lit_pretrain.data.batches import Collate, OrderedRows, StepSampler, make_loader
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.objective import BitsPerByte

RATES = {"embedding_lr": 0.3, "unembedding_lr": 0.008, "matrix_lr": 0.02, "scalar_lr": 0.5}
WEIGHT_DECAY = 0.28
REFERENCE_BATCH = 2**19
"""Tokens of a step with which its rates and its decay were tuned, at REFERENCE_LAYERS."""
REFERENCE_LAYERS = 12
REFERENCE_WIDTH = 768
REFERENCE_RATIO = 12
"""Tokens of that run for each parameter of the layers and of the head."""
IGNORED = -1
"""The label of a position that its loss leaves out."""


@dataclass(frozen=True)
class Schedule:
    """What nanochat sets before every step of a run."""

    steps: int
    weight_decay: float
    """Of the matrices, at the start."""
    warm_up: int = 40
    """Steps; a shorter run does not reach its full rates."""
    warm_down: float = 0.65
    """Share of the steps."""
    final: float = 0.05
    """Share of the rate after the last step."""

    def _left(self, step: int) -> float:
        """Return how much of the warm-down is to come, as a share of it; above 1 before it."""
        return (self.steps - step) / round(self.warm_down * self.steps)

    def rate(self, step: int) -> float:
        """Return the factor of all rates."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        left = min(self._left(step), 1.0)
        return left + (1.0 - left) * self.final

    def momentum(self, step: int) -> float:
        """Return the momentum of Muon, which rises for 400 steps and falls in the warm-down."""
        return 0.85 + 0.12 * step / 400 if step < 400 else 0.90 + 0.07 * min(self._left(step), 1.0)

    def decay(self, step: int) -> float:
        """Return the weight decay of the matrices."""
        return self.weight_decay * (1.0 + math.cos(math.pi * step / self.steps)) / 2.0

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set an optimizer of nanochat to the values of a step."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.rate(step)
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = self.momentum(step), self.decay(step)


def find(folder: Path, dtype: str) -> Any:
    """Import nanochat's module of the network, which computes in a dtype."""
    if not (folder / "nanochat" / "gpt.py").is_file():
        sys.exit(
            f"--nanochat={folder} holds no nanochat/gpt.py; have it there with: git clone"
            f" https://github.com/karpathy/nanochat {folder}"
        )
    os.environ["NANOCHAT_DTYPE"] = dtype  # it is read by the import
    sys.path.insert(0, str(folder))
    return importlib.import_module("nanochat.gpt")


def build(gpt: Any, device: str, **shape: Any) -> Any:
    """Make a network of nanochat, which was a module before it became a class around functions."""
    config = gpt.GPTConfig(n_kv_head=shape["n_head"], **shape)
    if not issubclass(gpt.GPT, nn.Module):
        return gpt.GPT(config, device)
    with torch.device(device):
        net = gpt.GPT(config)
        if device != "meta":
            net.init_weights()
    return net


def scaling_parameters(net: Any) -> int:
    """Count the parameters that nanochat scales a run by: those of the layers and of the head."""
    counts = net.num_scaling_params()
    return int(counts["transformer_matrices"] + counts["lm_head"])


def training_rows(data: TextData) -> Iterable[list[Batch]]:
    """Yield the micro-batches of each step, those of `fit` on one device."""
    data.setup("fit")
    order = data.order()
    steps = StepSampler(
        batch=data.batch_tokens.over(data.seq_len), rank=0, world_size=1, first_step=0,
        samples=order.end,
    )  # fmt: skip
    collate = Collate(
        micro_batch_size=data.micro_batch_size,
        eos_id=data.manifest.tokenizer.eos_id,
        cross_documents=data.cross_documents,
    )
    return make_loader(OrderedRows(order, data.readers("train")), steps, collate, trainer=None)


def nats(forward: Callable[..., Tensor], batch: Batch, device: str, reduction: str) -> Tensor:
    """Compute the loss of a micro-batch by nanochat's forward pass."""
    labels_BT = batch.labels_BT.masked_fill(batch.labels_BT == IGNORE_INDEX, IGNORED)
    return forward(batch.tokens_BT.to(device), labels_BT.to(device), loss_reduction=reduction)


def train(
    net: Any,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    batches: Iterable[list[Batch]],
    *,
    device: str,
    compiled: bool,
    turns: Turns | None = None,
) -> Iterator[float]:
    """Train as base_train.py does, and yield the loss of each step, in nats."""
    forward = torch.compile(net.forward, dynamic=False) if compiled else net.forward
    try:
        for step, batch in zip(range(schedule.steps), batches, strict=False):
            if turns is not None:
                turns.wait()
            for micro in batch:
                loss = nats(forward, micro, device, "mean")
                (loss / len(batch)).backward()
            schedule.set(optimizer, step)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()
            if step == 0:  # it collects no garbage during a run
                gc.collect()
                gc.freeze()
                gc.disable()
    finally:
        gc.enable()
        gc.unfreeze()


@torch.no_grad()
def measure(data: TextData, nats_of: Callable[[Batch], Tensor]) -> dict[str, float]:
    """Measure a network on the validation split as `validate` does.

    Args:
        data: Its `val_tokens` says how much of the split is read.
        nats_of: Computes the nats of every label of a micro-batch, (B, T), 0 where ignored.

    Returns:
        `loss` in nats per token, and `bits_per_byte`.
    """
    contract = data.contract
    metric = BitsPerByte(len(contract.sources))
    token_bytes_V = torch.tensor(contract.token_bytes)
    for batch in data.val_dataloader():
        for micro in batch:
            metric.update(nats_of(micro).cpu(), micro.labels_BT, micro.source_B, token_bytes_V)
    found = metric.compute()
    return {name: found[name].item() for name in ("loss", "bits_per_byte")}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanochat", type=Path, default=Path("../nanochat"), help="a checkout")
    parser.add_argument("--data", default="data/embedded", help="prepared by `lit_pretrain`")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--batch_tokens", type=int, default=4096, help="inputs of a step")
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument("--val_tokens", type=int, help="held-out inputs; all by default")
    parser.add_argument("--n_layer", type=int, default=3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--n_head", type=int, help="heads of 64 by default")
    parser.add_argument("--rates", type=float, default=1.0, help="factor of its four rates")
    parser.add_argument("--weight_decay", type=float, default=WEIGHT_DECAY)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="its NANOCHAT_DTYPE; by default what `fit` would take here",
    )  # fmt: skip
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--name", help="writes RUNS/NAME/result.json")
    parser.add_argument("--take_turns", action="store_true", help="wait for a turn at each step")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments().parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = "bfloat16" if default_precision("auto").startswith("bf16") else "float32"
    gpt = find(given.nanochat, given.dtype or fast)
    data = TextData(
        given.data,
        seq_len=given.seq_len,
        global_batch_tokens=given.batch_tokens,
        micro_batch_size=given.micro_batch_size,
        val_tokens=given.val_tokens,
        seed=given.seed,
    )
    heads = given.n_head or max(1, given.width // 64)
    head_dim = given.width // heads
    shape = {
        "sequence_len": given.seq_len, "vocab_size": data.vocab_size,
        "window_pattern": "L",  # whole rows, as it advises where there is no FlashAttention
    }  # fmt: skip
    torch.manual_seed(given.seed)
    net = build(gpt, device, n_layer=given.n_layer, n_head=heads, n_embd=given.width, **shape)
    reference_heads = -(-REFERENCE_WIDTH // head_dim)
    reference = build(
        gpt, "meta", n_layer=REFERENCE_LAYERS, n_head=reference_heads,
        n_embd=reference_heads * head_dim, **shape,
    )  # fmt: skip
    by_batch = math.sqrt(given.batch_tokens / REFERENCE_BATCH)
    tokens = given.steps * given.batch_tokens
    decay = given.weight_decay * by_batch * REFERENCE_RATIO * scaling_parameters(reference) / tokens
    optimizer = net.setup_optimizer(
        weight_decay=decay,
        **{name: given.rates * by_batch * rate for name, rate in RATES.items()},
    )
    began = time.perf_counter()
    losses = train(
        net, optimizer, Schedule(given.steps, decay), training_rows(data),
        device=device, compiled=given.compile == "on",
        turns=Turns() if given.take_turns else None,
    )  # fmt: skip
    for step, loss in enumerate(losses, start=1):
        if step % 50 == 0 or step == given.steps:
            print(f"step {step}/{given.steps} | loss {loss:.4f}", flush=True)
    seconds = time.perf_counter() - began
    found = measure(
        data,
        lambda micro: nats(net.forward, micro, device, "none").view_as(micro.labels_BT),
    )
    result = {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "steps": given.steps,
        "tokens": tokens,
        "seconds": seconds,
        **found,
    }
    if given.name is not None:
        folder = given.runs / given.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"val {found['loss']:.4f} ({found['bits_per_byte']:.4f} bits/byte)")


if __name__ == "__main__":
    main()
