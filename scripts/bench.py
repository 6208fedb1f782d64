"""Bench: speed and memory of `lit_pretrain fit` beside a bare PyTorch loop of the same shapes.

It prints tokens per second and peak memory.

    python scripts/bench.py                  # 6 layers × 384, T = 512, V = 8192, bf16 and fp32
    python scripts/bench.py --steps 40 --precision bf16-mixed
    python scripts/bench.py --steps 2 --tiny # toy shapes, nothing compiled: it only has to run

On a CUDA device the shapes are of the 1 B class and MFU is measured against the rate of a large
matrix product on that device. Every contestant is a process of its own, and they take turns step by
step (A B C A B C ...), so that what disturbs the machine disturbs all of them: with whole runs in
turn, medians of the same program differed by 10 %. Medians over steps are printed, and two ratios:
to the best bare loop of any kind, and to the one that does the same work, which attends within
documents (`+docs`). The bare loop is written here: plain modules, fused AdamW, clipping, random
tokens made beforehand, no logging, no data. It attends causally over the whole row, or within
documents as ours does (`+docs`). `reading` iterates the data pipeline alone. A step of `fit` is
everything from one batch to the next: loading, computing, logging.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import WARM, Contestant, Turns, take_turns

CPU = {"layers": 6, "width": 384, "heads": 6, "hidden": 1024, "seq": 512, "vocab": 8192, "batch": 8}
TINY = {"layers": 1, "width": 32, "heads": 2, "hidden": 64, "seq": 32, "vocab": 512, "batch": 2}
CUDA = {
    "layers": 16,
    "width": 2048,
    "heads": 32,
    "hidden": 5504,
    "seq": 4096,
    "vocab": 32768,
    "batch": 4,
}


class BareBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.gate, self.up = (
            nn.Linear(width, hidden, bias=False),
            nn.Linear(width, hidden, bias=False),
        )
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            self.qkv(self.n1(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        )
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
        h = self.n2(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Bare(nn.Module):
    def __init__(self, s: dict[str, int]) -> None:
        super().__init__()
        self.embed = nn.Embedding(s["vocab"], s["width"])
        self.blocks = nn.ModuleList(
            BareBlock(s["width"], s["heads"], s["hidden"]) for _ in range(s["layers"])
        )
        self.norm, self.head = nn.RMSNorm(s["width"]), nn.Linear(s["width"], s["vocab"], bias=False)
        half = s["width"] // s["heads"] // 2
        angle = torch.arange(s["seq"])[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor, labels: Tensor, doc: Tensor | None) -> Tensor:
        mask = None
        if doc is not None:
            T = tokens.shape[1]
            mask = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril() & (
                doc[:, None, :, None] == doc[:, None, None, :]
            )
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, mask)
        loss: Tensor = F.cross_entropy(
            self.head(self.norm(x)).flatten(0, 1).float(), labels.flatten()
        )
        return loss


def bare(
    s: dict[str, int], *, device: str, precision: str, compiled: bool, docs: bool, steps: int
) -> dict[str, float]:
    torch.manual_seed(0)
    net = Bare(s).to(device)
    for p in net.parameters():
        nn.init.normal_(p, std=0.02) if p.ndim > 1 else nn.init.ones_(p)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    loss_of = torch.compile(net, dynamic=False) if compiled else net
    rows = torch.randint(0, s["vocab"], (4, s["batch"], s["seq"] + 1), device=device)
    doc = (
        (torch.arange(s["seq"], device=device) > s["seq"] // 2)
        .int()
        .expand(s["batch"], -1)
        .contiguous()
        if docs
        else None
    )
    turns = Turns()
    for i in range(steps):
        turns.wait()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = loss_of(rows[i % 4, :, :-1], rows[i % 4, :, 1:], doc)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    turns.wait()
    return {"peak_mib": peak_mib(device)}


def peak_mib(device: str) -> float:
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )


def ours(
    s: dict[str, int], *, data: str, precision: str, steps: int, compiled: bool
) -> dict[str, float]:
    from lit_pretrain.__main__ import main as cli

    with tempfile.TemporaryDirectory() as runs:
        code = cli([
            "fit", "--config", "configs/pretrain/llama_adamw.yaml", "--data.path", data, "--runs",
            runs, "--name", "bench",
            f"--model.net.n_layer={s['layers']}", f"--model.net.width={s['width']}",
            f"--model.net.n_head={s['heads']}",
            f"--model.net.ffn_width={s['hidden']}", f"--model.net.max_seq_len={s['seq']}",
            f"--data.seq_len={s['seq']}",
            f"--data.micro_batch_size={s['batch']}",
            f"--data.global_batch_tokens={s['batch'] * s['seq']}",
            f"--trainer.precision={precision}", f"--model.compile={'on' if compiled else 'off'}",
            f"--max_steps={steps}", "--log_every=5",
            "--validate_every=0", "--checkpoint_every=0", "--sample_prompts=[]",
            f"--data.val_tokens={s['batch'] * s['seq']}",
            "--trainer.callbacks+=turns.TakeTurns",
        ])  # fmt: skip
        assert code == 0, code
        lines = [
            json.loads(line)
            for line in (Path(runs) / "bench" / "metrics.jsonl").read_text().splitlines()
        ]
        windows = [line for line in lines if "time/step_seconds" in line]
        return {
            # Seconds, because the window's whole time holds the turns of the others.
            "data_seconds": statistics.median(
                line["time/data_fraction"] * line["time/step_seconds"]
                for line in windows[1:] or windows
            ),
            "peak_mib": peak_mib("cuda" if torch.cuda.is_available() else "cpu"),
        }


def reading(s: dict[str, int], *, data: str) -> float:
    """Measure the seconds that the data pipeline takes for a step's batch."""
    from lit_pretrain.data.text.text_data import TextData

    module = TextData(
        path=data,
        seq_len=s["seq"],
        global_batch_tokens=s["seq"] * s["batch"],
        micro_batch_size=s["batch"],
    )
    from lit_pretrain.data.batches import Collate, OrderedRows

    rows = OrderedRows(module.order(), module.readers("train"))
    collate = Collate(
        micro_batch_size=s["batch"], eos_id=module.manifest.tokenizer.eos_id, cross_documents=False
    )
    seconds = []
    for step in range(200):
        began = time.perf_counter()
        collate([rows[n] for n in range(step * s["batch"], (step + 1) * s["batch"])])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matmul_peak() -> float:
    """Measure the rate of a large bf16 matrix product on this device, FLOP/s."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began)


def compete(
    jobs: dict[str, dict[str, Any]], steps: int, *, together: bool, options: list[str]
) -> dict[str, dict[str, float]]:
    """Run all contestants: together, taking steps in turn, or one after the other."""
    program = [sys.executable, "-W", "ignore", __file__, *options, "--job"]
    commands = {
        name: [*program, json.dumps(job | {"steps": steps + WARM})] for name, job in jobs.items()
    }
    if not together:
        return {name: run(Contestant(command), steps) for name, command in commands.items()}
    contestants = {name: Contestant(command) for name, command in commands.items()}
    take_turns(contestants.values(), steps)
    return {name: run(contestant, 1) for name, contestant in contestants.items()}


def run(contestant: Contestant, steps: int) -> dict[str, float]:
    """Let a contestant take so many steps, the last one unmeasured, and gather what it found."""
    take_turns([contestant], steps)
    found: dict[str, float] = json.loads(contestant.finish().splitlines()[-1])
    return found | {
        "step_seconds": statistics.median(contestant.seconds),
        "start_seconds": contestant.start_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/embedded")
    parser.add_argument("--precision", nargs="+", default=["bf16-mixed", "32-true"])
    parser.add_argument("--steps", type=int, default=30, help="steps of each contestant that count")
    parser.add_argument(
        "--tiny", action="store_true", help="toy shapes, nothing compiled: to see that it runs"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = TINY if options.tiny else CUDA if device == "cuda" else CPU
    if options.job:
        job = json.loads(options.job)
        kind = job.pop("kind")
        runners: dict[str, Callable[..., dict[str, float]]] = {"bare": bare, "ours": ours}
        print(json.dumps(runners[kind](shape, **job)))
        return
    tokens = shape["batch"] * shape["seq"]
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {shape}")
    for precision in options.precision:
        common = {"kind": "bare", "device": device, "precision": precision}
        jobs: dict[str, dict[str, Any]] = {
            "bare eager": {"compiled": False, "docs": False, **common}
        }
        same = "bare eager +docs" if options.tiny else "bare compiled +docs"
        if not options.tiny:
            jobs["bare compiled"] = {"compiled": True, "docs": False, **common}
        jobs[same] = {"compiled": not options.tiny, "docs": True, **common}
        jobs["lit_pretrain fit"] = {
            "kind": "ours",
            "data": options.data,
            "compiled": not options.tiny,
            "precision": precision,
        }
        results = compete(
            jobs,
            options.steps,
            together=device
            == "cpu",  # a GPU has no room for all of them, and nobody else disturbs it
            options=["--tiny"] if options.tiny else [],
        )
        rate = {name: tokens / result["step_seconds"] for name, result in results.items()}
        best = max(value for name, value in rate.items() if name.startswith("bare"))
        print(
            f"\n{precision:20} {'tokens/s':>9} {'of best bare':>13} {'of bare +docs':>14}"
            f" {'peak MiB':>9} {'start to first step':>20}"
        )
        for name, result in results.items():
            print(
                f"{name:20} {rate[name]:9,.0f} {rate[name] / best:13.3f}"
                f" {rate[name] / rate[same]:14.3f} {result['peak_mib']:9,.0f}"
                f" {result['start_seconds']:18.1f} s",
                flush=True,
            )
        fit = results["lit_pretrain fit"]
        print(f"data wait of fit: {fit['data_seconds'] / fit['step_seconds']:.2%} of step time")
        if device == "cuda":
            from lit_pretrain.model.config import ModelConfig
            from lit_pretrain.scaling.flops import flops_per_token

            net = ModelConfig(
                vocab_size=shape["vocab"],
                n_layer=shape["layers"],
                width=shape["width"],
                n_head=shape["heads"],
                ffn_width=shape["hidden"],
            )
            flops = flops_per_token(net, shape["seq"]).training
            print(
                "MFU against the measured matmul rate:"
                f" {rate['lit_pretrain fit'] * flops / matmul_peak():.1%}"
            )
    print(f"\nreading alone: {tokens / reading(shape, data=options.data):,.0f} tokens/s")


if __name__ == "__main__":
    main()
