"""Bench of generation: tokens per second with the cache of keys and values and without, and of
reading a prompt.

    python scripts/bench_generate.py                        # 6 layers × 384, V = 8192: the shape of
    scripts/bench.py python scripts/bench_generate.py --run runs/sft         # the network of a run
    python scripts/bench_generate.py --tiny                 # does it run? its figures mean nothing

A reply of 256 tokens to a prompt of 32, greedy, by one row and by eight. Without the cache every
step reads the whole sequence again. The two must write the same tokens, and take turns, so that
what disturbs the machine disturbs both; medians are printed. Weights are drawn by a seed unless a
run is given: speed does not depend on them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from lit_pretrain.generate.engine import generate
from lit_pretrain.model.attention import KVCache
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

Rows = list[list[int]]


def with_cache(net: Transformer, prompts: Rows, new: int) -> Rows:
    rows: Rows = [[] for _ in prompts]
    for token in generate(net, prompts, max_new_tokens=new, temperature=0.0):
        rows[token.row].append(token.id)
    return rows


@torch.inference_mode()
def without_cache(net: Transformer, prompts: Rows, new: int) -> Rows:
    tokens_BT = torch.tensor(prompts, device=net.token_embedding.weight.device)
    for _ in range(new):
        next_B = net.logits(net(tokens_BT)[:, -1]).argmax(-1)
        tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
    rows: Rows = tokens_BT[:, len(prompts[0]) :].tolist()
    return rows


@torch.inference_mode()
def reading(net: Transformer, prompts: Rows) -> None:
    device = net.token_embedding.weight.device
    cache = KVCache(net.config, len(prompts), len(prompts[0]), device, net.compute_dtype())
    net.logits(net(torch.tensor(prompts, device=device), cache=cache)[:, -1]).sum().item()


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
        f"{'':10} {'rows':>5} {'with cache':>12} {'without':>10} {'ratio':>7} {'reading 256':>12}  "
        "  tokens a second, all rows together"
    )
    for dtype in options.dtype:
        net = net.to(getattr(torch, dtype))
        for batch in (1, 8):
            prompts = torch.randint(c.vocab_size, (batch, 32)).tolist()
            long = torch.randint(c.vocab_size, (batch, 256)).tolist()
            same = with_cache(net, prompts, options.new) == without_cache(net, prompts, options.new)
            if dtype == "float32" and not same:
                sys.exit("the cache changes what is written")
            timed: dict[str, list[float]] = {"with": [], "without": [], "reading": []}
            for _ in range(options.rounds):
                timed["with"].append(seconds(partial(with_cache, net, prompts, options.new)))
                timed["without"].append(seconds(partial(without_cache, net, prompts, options.new)))
                timed["reading"].append(seconds(partial(reading, net, long)))
            took = {name: statistics.median(values) for name, values in timed.items()}
            new = batch * options.new
            print(
                f"{dtype:10} {batch:5} {new / took['with']:12,.0f} {new / took['without']:10,.0f}"
                f" {took['without'] / took['with']:6.1f}× {256 * batch / took['reading']:12,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
