"""Bench of generation: tokens per second of replies and of reading a prompt, beside transformers.

    python scripts/bench_generate.py                      # 6 layers × 384, as scripts/bench.py
    python scripts/bench_generate.py --run runs/sft       # the network of a run
    python scripts/bench_generate.py --tiny               # does it run? its figures mean nothing

A reply of 256 tokens to a prompt of 32, greedy, by one row and by eight: "native" as `generate`
decodes on a CPU, "modules" by the network's modules, "transformers" by transformers on the same
weights, exported, with its own cache of keys and values, in the faster of its attentions "sdpa" and
"eager". The rest takes turns, so that what disturbs the machine disturbs all; medians are printed.
Native and modules must write the same tokens. Weights are drawn by a seed unless a run is given:
speed does not depend on them.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command does, before torch

import torch

from lit_pretrain.checkpoint.hf_export import to_config, to_tensors, write_tensors
from lit_pretrain.errors import UserError
from lit_pretrain.generate import engine
from lit_pretrain.generate.native_step import why_not_native
from lit_pretrain.model.attention import KVCache
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

Rows = list[list[int]]
ATTENTIONS = ("sdpa", "eager")


def native(net: Transformer, prompts: Rows, new: int) -> Rows:
    rows: Rows = [[] for _ in prompts]
    for token in engine.generate(net, prompts, max_new_tokens=new, temperature=0.0):
        rows[token.row].append(token.id)
    return rows


def modules(net: Transformer, prompts: Rows, new: int) -> Rows:
    with mock.patch.object(engine, "native_step", return_value=None):
        return native(net, prompts, new)


@torch.inference_mode()
def reading(net: Transformer, prompts: Rows) -> None:
    device = net.token_embedding.weight.device
    cache = KVCache(net.config, len(prompts), len(prompts[0]), device, net.compute_dtype())
    net.logits(net(torch.tensor(prompts, device=device), cache=cache)[:, -1]).sum().item()


def by_transformers(net: Transformer) -> list[Any]:
    """Load the network in transformers, once for each kind of attention; none if it cannot be."""
    if importlib.util.find_spec("transformers") is None:
        return []
    weight = net.token_embedding.weight
    name = str(weight.dtype).removeprefix("torch.")
    try:
        config = to_config(net.config, dtype=name, bos_id=0, eos_id=0, pad_id=0)
    except UserError:
        return []
    transformers: Any = importlib.import_module("transformers")  # slow, and not always there
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        write_tensors(to_tensors(net.config, net.state_dict()), folder, max_shard_bytes=10**10)
        for attention in ATTENTIONS:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=weight.dtype, attn_implementation=attention
            )
            model.generation_config.eos_token_id = None  # every reply has all its tokens
            models.append(model.to(weight.device).eval())
    return models


@torch.inference_mode()
def theirs(model: Any, prompts: Rows, new: int) -> Rows:
    tokens_BT = torch.tensor(prompts, device=model.device)
    written_BT = model.generate(
        tokens_BT,
        attention_mask=torch.ones_like(tokens_BT),
        max_new_tokens=new,
        do_sample=False,
    )
    rows: Rows = written_BT[:, len(prompts[0]) :].tolist()
    return rows


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", help="a run whose network is measured")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--new", type=int, default=256, help="tokens written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy: to see that it runs")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if options.run:
        from lit_pretrain.cli.command.load_run import load_run

        net = load_run(options.run, "last", device)[0]
    elif options.tiny:
        net = Transformer(
            ModelConfig(vocab_size=512, n_layer=1, width=32, n_head=2, max_seq_len=512)
        )
    else:
        net = Transformer(
            ModelConfig(
                vocab_size=8192, n_layer=6, width=384, n_head=6, ffn_width=1024, max_seq_len=2048
            )
        )
    net = net.to(device).eval()
    c = net.config
    print(
        f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {c.n_layer}"
        f" layers × {c.width}, V = {c.vocab_size}"
    )
    print(
        f"{'':10} {'rows':>5} {'native':>12} {'modules':>12} {'transformers':>12} {'ratio':>7}"
        f" {'reading 256':>12}    tokens a second, all rows together"
    )
    for dtype in options.dtype:
        net = net.to(getattr(torch, dtype))
        reason = why_not_native(net)
        if reason is not None:
            print(f"{dtype}: native is modules, because {reason}")
        others = by_transformers(net)
        for batch in (1, 8):
            prompts = torch.randint(c.vocab_size, (batch, 32)).tolist()
            long = torch.randint(c.vocab_size, (batch, 256)).tolist()
            same = native(net, prompts, options.new) == modules(net, prompts, options.new)
            if dtype == "float32" and not same:
                sys.exit("the native step changes what is written")
            runs: dict[str, Callable[[], object]] = {
                "native": partial(native, net, prompts, options.new),
                "modules": partial(modules, net, prompts, options.new),
                "reading": partial(reading, net, long),
            }
            for attention, model in zip(ATTENTIONS, others, strict=False):
                runs[attention] = partial(theirs, model, prompts, options.new)
                theirs(model, prompts, 4)  # what it prepares at its first call is not counted
            timed: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    timed[name].append(seconds(run))
            took = {name: statistics.median(values) for name, values in timed.items()}
            new = batch * options.new
            best = min((took[name] for name in ATTENTIONS if name in took), default=None)
            beside = (
                f"{'-':>12} {'-':>7}"
                if best is None
                else f"{new / best:12,.0f} {best / took['native']:6.1f}×"
            )
            print(
                f"{dtype:10} {batch:5} {new / took['native']:12,.0f}"
                f" {new / took['modules']:12,.0f} {beside} {256 * batch / took['reading']:12,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
