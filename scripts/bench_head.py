"""Time and memory of the ways to compute head and loss, forward and backward.

The table behind linear_cross_entropy's default.

    python scripts/bench_head.py                      # both default shapes, fp32 and bf16 autocast
    python scripts/bench_head.py --shape 4096,384,8192 --precision bf16 --repeats 9

Candidates are interleaved, so that a busy machine slows all of them alike. `cpu` is processor time
of all threads: compare that one (with OMP_NUM_THREADS=1) where other jobs run. `peak` is what the
candidate adds to the memory in use before it.
"""

import argparse
import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.objective import linear_cross_entropy

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, labels)[0]


def ours_chunk(chunk: int) -> Head:
    return lambda hidden, weight, labels: linear_cross_entropy(hidden, weight, labels, chunk=chunk)[
        0
    ]


class _Unrolled(torch.autograd.Function):
    """The same mathematics in plain operations, for the compiler to unroll and fuse."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, chunk, dtype):  # type: ignore[no-untyped-def]  # torch's form
        h, w = hidden.to(dtype), weight.to(dtype)
        grads, total, grad_weight = [], hidden.new_zeros(()), torch.zeros_like(weight)
        for start in range(0, h.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = (h[part] @ w.T).float()
            lse = torch.logsumexp(logits, dim=1)
            total = total + (lse - logits.gather(1, labels[part, None]).squeeze(1)).sum()
            one_hot = torch.arange(w.shape[0], device=h.device) == labels[part, None]
            grad = (torch.exp(logits - lse[:, None]) - one_hot.float()).to(dtype)
            grads.append(grad @ w)
            grad_weight = grad_weight + grad.T @ h[part]
        ctx.save_for_backward(torch.cat(grads).to(hidden.dtype), grad_weight)
        return total

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]  # torch's form
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * upstream, grad_weight * upstream, None, None, None


def unrolled(chunk: int) -> Head:
    def head(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        return _Unrolled.apply(hidden, weight, labels, chunk, dtype)  # type: ignore  # torch's own

    return head


def torch_chunked(chunk: int) -> Head:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, acc_policy="accurate")
    return lambda hidden, weight, labels: F.linear_cross_entropy(
        hidden, weight, labels, reduction="sum", options=options
    )


def candidates() -> dict[str, Head]:
    heads: dict[str, Head] = {
        "plain": plain,
        "plain, compiled": torch.compile(plain),
        "ours": ours,
        "ours, compiled around": torch.compile(ours, fullgraph=True),
        "ours, 256 tokens a chunk": ours_chunk(256),
        "ours, 512 tokens a chunk": ours_chunk(512),
        "unrolled, 512, compiled": torch.compile(unrolled(512), fullgraph=True),
    }
    if hasattr(F, "linear_cross_entropy"):  # torch >= 2.13
        heads["torch's, 256 tokens a chunk"] = torch_chunked(256)
    return heads


@dataclass
class Record:
    first_s: float = 0.0
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    loss: float = 0.0


class PeakMemory:
    """MiB above the level at `start`.

    Read from the kernel's high-water mark (CPU, Linux) or torch's (CUDA).
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def _status(self) -> dict[str, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return {
            line.split(":")[0]: int(line.split()[1])
            for line in lines
            if line.startswith(("VmHWM", "VmRSS"))
        }

    def start(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated() / 2**10
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(
                0
            )  # else memory that an earlier candidate left behind hides this one's
            Path("/proc/self/clear_refs").write_text("5")
            self.base = self._status()["VmRSS"]

    def mib(self) -> float:
        peak = (
            torch.cuda.max_memory_allocated() / 2**10
            if self.device == "cuda"
            else self._status()["VmHWM"]
        )
        return (peak - self.base) / 2**10


def measure(
    shape: tuple[int, int, int], precision: str, repeats: int, device: str
) -> dict[str, Record]:
    tokens, width, vocabulary = shape
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), device=device)
    peak = PeakMemory(device)

    def once(head: Head) -> float:
        hidden.grad = weight.grad = None
        with (
            torch.autocast(device, torch.bfloat16)
            if precision == "bf16"
            else contextlib.nullcontext()
        ):
            loss = head(hidden, weight, labels)
        loss.backward()
        return loss.item()  # waits for a GPU

    heads = candidates()
    records = {name: Record() for name in heads}
    for name, head in heads.items():
        start = time.perf_counter()
        records[name].loss = once(head)
        records[name].first_s = time.perf_counter() - start
        once(head)
    for _ in range(repeats):
        for name, head in heads.items():
            wall, cpu = time.perf_counter(), time.process_time()
            once(head)
            records[name].wall_s.append(time.perf_counter() - wall)
            records[name].cpu_s.append(time.process_time() - cpu)
    for _ in range(
        2
    ):  # apart from the times: returning memory to the kernel between candidates costs page faults
        for name, head in heads.items():
            hidden.grad = weight.grad = None
            peak.start()
            once(head)
            records[name].peak_mib.append(peak.mib())
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", help="tokens,width,vocabulary; may repeat")
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads,"
        f" {args.repeats} interleaved repeats, medians"
    )
    for text in args.shape or ["4096,384,8192", "2048,1024,32768"]:
        tokens, width, vocabulary = (int(part) for part in text.split(","))
        for precision in args.precision or ["fp32", "bf16"]:
            print(f"\nN={tokens} D={width} V={vocabulary} {precision}")
            print(
                f"{'':30s}{'wall ms':>9s}{'cpu ms':>9s}{'peak MiB':>10s}{'first s':>9s}"
                f"{'loss/N':>11s}"
            )
            for name, r in measure(
                (tokens, width, vocabulary), precision, args.repeats, args.device
            ).items():
                wall, cpu = statistics.median(r.wall_s) * 1e3, statistics.median(r.cpu_s) * 1e3
                print(
                    f"{name:30s}{wall:9.1f}{cpu:9.1f}{max(r.peak_mib):10.1f}{r.first_s:9.1f}"
                    f"{r.loss / tokens:11.6f}",
                    flush=True,
                )
            torch.compiler.reset()


if __name__ == "__main__":
    main()
