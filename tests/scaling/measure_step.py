"""Measures what real optimizer steps take of a process's memory, beside the plan for them; run by
test_memory.py in its own process.

usage: python measure_step.py '{"net": {...}, "rows": 8, "seq_len": 512, "precision": "32-true",
"checkpointing": false}'

With "answering": {"rows": 64, "prompts": 8, "prompt_tokens": 32, "new_tokens": 96} prompts are
answered, once, and nothing is learned. With "adapter": {"rank": 8, "quantize": "nf4"} an adapter is
trained.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch

from lit_pretrain.adapter import LoRA
from lit_pretrain.cli.train.resolve import adapter_cost
from lit_pretrain.generate.engine import CompletionSampling, sample_completions
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.scaling.memory import Answering, Layout, peak


def resident() -> int:
    """Bytes of the process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(asked: dict) -> None:
    torch.set_num_threads(1)
    config = ModelConfig(**asked["net"])
    adapter = LoRA(**asked["adapter"]) if "adapter" in asked else None
    cost = None if adapter is None else adapter_cost(config, adapter)
    layout = Layout(
        rows=asked["rows"], seq_len=asked["seq_len"], precision=asked["precision"], compiled=False,
        fused_norm=False,
        checkpointing=asked["checkpointing"], device="cpu", moments="answering" not in asked,
        answering=Answering(**asked["answering"]) if "answering" in asked else None,
        trainable=1.0 if cost is None else 0.0, added=0 if cost is None else cost.trained,
        quantized=0 if cost is None else cost.quantized,
    )  # fmt: skip
    warm = torch.nn.Linear(64, 64)
    warm(torch.randn(64, 64)).sum().backward()  # libraries load before the baseline is read
    before = resident()
    net = Transformer(config)
    net.checkpoint_activations(asked["checkpointing"])
    if adapter is not None:
        adapter.apply(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], fused=True)
    tokens_BT = torch.randint(0, config.vocab_size, (layout.rows, layout.seq_len))
    doc_BT = torch.zeros_like(tokens_BT)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=asked["precision"] == "bf16-mixed"
        ):
            scores = LabelScores(net(tokens_BT, doc_BT), net.head_weight, tokens_BT)
            total, _ = scores.cross_entropy()
        (total / tokens_BT.numel()).backward()
        optimizer.step()

    def answer() -> None:
        a = layout.answering
        assert a is not None
        prompts = (
            torch.randint(0, config.vocab_size, (a.prompts, a.prompt_tokens))
            .repeat_interleave(a.rows // a.prompts, 0)
            .tolist()
        )
        with torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=asked["precision"] == "bf16-mixed"
        ):
            sample_completions(
                net, prompts, sampling=CompletionSampling(a.new_tokens, ()), seeds=range(a.rows)
            )

    highest, running = [0], [True]

    def watch() -> None:
        while running[0]:
            highest[0] = max(highest[0], resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        step() if layout.answering is None else answer()
    running[0] = False
    watcher.join()
    found = peak(config, layout)
    print(json.dumps({"planned": found.answers or found.bytes, "measured": highest[0] - before}))


main(json.loads(sys.argv[1]))
