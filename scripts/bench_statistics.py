"""What a look into every layer costs, as a share of the training step in which it is taken.

    python scripts/bench_statistics.py                # the quickstart's network, fp32 and bf16
    python scripts/bench_statistics.py --rows 4 --repeats 9

Steps with and without a look take turns, and medians of their processor time are compared.
`at N = 10` is a tenth of it: what `--statistics_every 10` costs a run.
"""

import argparse
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch

from lit_pretrain.callbacks.layer_statistics import WeightSums
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.observation import Observation
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import linear_cross_entropy

LENGTH, VOCABULARY = 512, 8192


def measure(dtype: torch.dtype, *, rows: int, repeats: int, compiled: bool) -> tuple[float, float]:
    """Return the median processor seconds of a step without and with a look."""
    torch.manual_seed(0)
    config = ModelConfig(
        n_layer=6, width=384, n_head=6, vocab_size=VOCABULARY, max_seq_len=LENGTH, qk_norm=True,
        init="gpt2",
    )  # fmt: skip
    net = Transformer(config)
    if compiled:
        net.compile_blocks()
    observation = Observation(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    run: Any = SimpleNamespace(
        lightning_module=net, optimizers=[optimizer], world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    tokens_BT = torch.randint(VOCABULARY, (rows, LENGTH + 1))
    doc_BT = (torch.arange(LENGTH) // 150).expand(rows, LENGTH)

    def step(looks: bool) -> float:
        began = time.process_time()
        if looks:
            observation.begin()
            weights = WeightSums(run)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden_BTD = net(tokens_BT[:, :-1], doc_BT)
            labels_N = tokens_BT[:, 1:].flatten()
            loss = linear_cross_entropy(hidden_BTD.flatten(0, 1), net.head_weight, labels_N)[0]
        loss.backward()
        if looks:
            weights.before_update()
        optimizer.step()
        if looks:
            weights.after_update(1.0)
            observation.end()
        return time.process_time() - began

    step(looks=True)  # compiles
    pairs = [(step(looks=False), step(looks=True)) for _ in range(repeats)]
    without, watched = (statistics.median(column) for column in zip(*pairs, strict=True))
    return without, watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    print("precision  step (s)  with a look (s)  more   at N = 10")
    for dtype in (torch.float32, torch.bfloat16):
        plain, watched = measure(
            dtype, rows=options.rows, repeats=options.repeats, compiled=options.compile
        )
        more = watched / plain - 1
        name = str(dtype).removeprefix("torch.")
        print(f"{name:9}  {plain:8.2f}  {watched:15.2f}  {more:5.1%}  {more / 10:9.2%}")


if __name__ == "__main__":
    main()
