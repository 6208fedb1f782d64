"""Time of a step: the planner's seconds beside published runs, and the constants fitted to them.

    python scripts/step_time.py          # every run, measured and computed
    python scripts/step_time.py --fit    # fit the constants again

The runs are of Mosaic's LLM Foundry (scripts/train/benchmarking/README.md: its table of H100 80GB
in bf16 and 35 rows of that of A100 80GB) and of torchtitan
(benchmarks/llama3_h100_202412_torchtitan.md). Mosaic gathers weights in fp32 and scatters
gradients in bf16, and its attention is an early Triton kernel, which has a share of its own.
torchtitan's H100 have less power and slower memory; its authors put their peak between H100 SXM
and NVL, and 835 TFLOP/s, that of the NVL, are assumed. Its runs with pipelines (405 B) are left
out: there are none here.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

import lit_pretrain.scaling.step_time as model
from lit_pretrain.model.config import Checkpointing, ModelConfig
from lit_pretrain.scaling.flops import flops_per_token
from lit_pretrain.scaling.memory import Layout

FOUNDRY_ATTENTION = {"H100": 0.189, "A100": 0.337}
"""Share of the peak that attention reached in Mosaic's runs."""

# Model, tokens of a row, devices, rows of a micro-batch, whether activations are computed again,
# tokens per second and device.
H100 = """\
70b 2048 64 8 1 1039
70b 2048 32 2 1 882
30b 8192 8 1 1 1384
30b 4096 8 1 1 1802
30b 2048 32 14 1 2308
30b 2048 16 10 1 2263
30b 2048 8 3 1 2002
30b 1024 8 6 1 2084
13b 32768 8 1 1 1976
13b 16384 8 3 1 2985
13b 4096 8 10 1 4717
13b 2048 64 2 0 4800
13b 2048 32 2 0 4811
13b 2048 16 2 0 4767
13b 2048 8 2 0 4792
13b 1024 8 40 1 5502
7b 65536 8 1 1 1956
7b 32768 8 2 1 3318
7b 8192 8 8 1 6935
7b 4096 8 16 1 8611
7b 2048 8 6 0 10643
7b 1024 8 64 1 10203
3b 65536 8 1 1 3262
3b 32768 8 3 1 5873
3b 16384 8 1 0 11152
3b 8192 8 3 0 16578
3b 4096 8 5 0 20964
3b 2048 64 6 0 22525
3b 2048 32 6 0 23021
3b 2048 16 10 0 24142
3b 1024 8 20 0 27046
3b 512 8 40 0 27965
1b 65536 8 1 1 5506
1b 32768 8 1 0 12025
1b 16384 8 2 0 19649
1b 8192 8 3 0 29157
1b 4096 8 7 0 38535
1b 2048 64 20 0 44402
1b 2048 32 20 0 45130
1b 2048 16 20 0 46037
1b 2048 8 14 0 45455
1b 1024 8 18 0 48910
1b 512 8 56 0 52275
760m 32768 8 1 0 16291
760m 16384 8 3 0 27815
760m 8192 8 6 0 41825
760m 4096 8 12 0 55459
760m 2048 32 24 0 67971
760m 2048 16 24 0 68551
760m 2048 8 24 0 63147
760m 1024 8 48 0 78581
760m 512 8 96 0 83749"""
A100 = """\
70b 2048 64 8 1 410
70b 2048 32 2 1 373
30b 8192 8 1 1 574
30b 4096 8 1 1 814
30b 2048 8 3 1 916
30b 512 8 12 1 967
13b 32768 8 1 1 1016
13b 16384 8 3 1 1431
13b 8192 8 5 1 1795
13b 2048 8 2 0 2262
13b 1024 8 40 1 2330
7b 65536 8 1 1 1013
7b 32768 8 2 1 1672
7b 16384 8 4 1 2453
7b 8192 8 8 1 3206
7b 2048 8 6 0 4641
7b 1024 8 64 1 4357
3b 65536 8 1 1 1767
3b 16384 8 1 0 5529
3b 8192 8 3 0 7695
3b 4096 8 5 0 9457
3b 2048 8 10 0 10811
3b 512 8 40 0 12127
1b 65536 8 1 1 3044
1b 32768 8 1 0 6275
1b 16384 8 2 0 9956
1b 8192 8 3 0 13814
1b 4096 8 7 0 17807
1b 2048 8 14 0 20513
1b 512 8 56 0 23148
760m 65536 8 1 1 4143
760m 32768 8 1 0 8802
760m 8192 8 6 0 20933
760m 4096 8 12 0 27351
760m 2048 8 24 0 32434"""
# Model, tokens of a row, devices, cp, tp, rows, what is not computed again (its "selective" keeps
# attention and every second product), compiled, fp8, tokens per second and device.
TORCHTITAN: tuple[tuple[str, int, int, int, int, int, Checkpointing, bool, bool, int], ...] = (
    ("8B", 8192, 8, 1, 1, 2, "products", False, False, 5762),
    ("8B", 8192, 8, 1, 1, 2, "products", True, False, 6667),
    ("8B", 8192, 8, 1, 1, 2, "products", True, True, 8532),
    ("8B", 8192, 128, 1, 1, 2, "products", False, False, 5605),
    ("8B", 8192, 128, 1, 1, 2, "products", True, False, 6514),
    ("8B", 8192, 128, 1, 1, 2, "products", True, True, 8380),
    ("8B", 32768, 8, 1, 1, 1, True, True, True, 3890),
    ("8B", 65536, 8, 2, 1, 1, True, True, True, 2540),
    ("8B", 131072, 8, 4, 1, 1, True, True, True, 1071),
    ("8B", 262144, 8, 8, 1, 1, True, True, True, 548),
    ("70B", 8192, 256, 1, 8, 16, True, True, True, 829),
)
MPT = {
    "760m": (1536, 24, 12), "1b": (2048, 24, 16), "3b": (2560, 32, 20), "7b": (4096, 32, 32),
    "13b": (5120, 40, 40), "30b": (7168, 48, 56), "70b": (8192, 80, 64),
}  # fmt: skip
LLAMA3 = {"8B": (4096, 32, 32, 14336), "70B": (8192, 80, 64, 28672)}
CLUSTERS = {
    "H100": model.Cluster(
        989e12, dataclasses.replace(model.RATES["H100"], attention=FOUNDRY_ATTENTION["H100"])
    ),
    "A100": model.Cluster(
        312e12, dataclasses.replace(model.RATES["A100 80GB"], attention=FOUNDRY_ATTENTION["A100"])
    ),
    "torchtitan": model.Cluster(835e12, dataclasses.replace(model.RATES["H100"], memory=2.4e12)),
}


@dataclass(frozen=True)
class Run:
    """A published run."""

    name: str
    cluster: str
    config: ModelConfig
    layout: Layout
    measured: float
    """Tokens per second and device."""

    def computed(self) -> float:
        """Compute what the planner says, in tokens per second and device."""
        time = model.step_time(self.config, self.layout, CLUSTERS[self.cluster], micro_batches=1)
        return self.layout.rows * self.layout.seq_len / self.layout.together / time.seconds

    def error(self) -> float:
        """Return the relative error of the MFU, which is that of the tokens per second."""
        return self.computed() / self.measured - 1


class _Foundry(Layout):
    """Gradients travel in bf16, weights in fp32."""

    @property
    def reduced_bytes(self) -> int:
        return 2


def _foundry(cluster: str, line: str) -> Run:
    name, *numbers = line.split()
    seq_len, devices, rows, again, measured = map(int, numbers)
    width, layers, heads = MPT[name]
    config = ModelConfig(
        vocab_size=50368, width=width, n_layer=layers, n_head=heads, max_seq_len=seq_len,
        position="learned", norm="layernorm", activation="gelu", tie_embeddings=True,
        norm_bias=True, qkv_bias=True, attn_out_bias=True, ffn_bias=True,
    )  # fmt: skip
    # Its A100 runs of 70 B alone are in bf16 throughout.
    precision = "bf16-true" if (cluster, name) == ("A100", "70b") else "bf16-mixed"
    layout = _Foundry(
        rows=rows, seq_len=seq_len, devices=devices, sharding="fsdp", compiled=False,
        precision=precision, checkpointing=bool(again),
    )  # fmt: skip
    return Run(f"{cluster} {name} T={seq_len} on {devices}", cluster, config, layout, measured)


def _torchtitan(row: tuple[str, int, int, int, int, int, Checkpointing, bool, bool, int]) -> Run:
    name, seq_len, devices, cp, tp, rows, again, compiled, fp8, measured = row
    width, layers, heads, ffn = LLAMA3[name]
    config = ModelConfig(
        vocab_size=128256, width=width, n_layer=layers, n_head=heads, n_kv_head=8, ffn_width=ffn,
        max_seq_len=seq_len, position="rope", norm="rmsnorm", activation="swiglu",
    )  # fmt: skip
    layout = Layout(
        rows=rows, seq_len=seq_len, devices=devices, sharding="fsdp", cp=cp, tp=tp,
        compiled=compiled, precision="bf16-policy", float8=fp8, checkpointing=again,
    )  # fmt: skip
    how = f"{' compiled' if compiled else ''}{' fp8' if fp8 else ''}"
    axes = "".join(f" {axis} {size}" for axis, size in (("cp", cp), ("tp", tp)) if size > 1)
    return Run(
        f"torchtitan {name} T={seq_len} on {devices}{axes}{how}", "torchtitan", config, layout,
        measured,
    )  # fmt: skip


def runs() -> list[Run]:
    """List all published runs."""
    return [
        *(_foundry("H100", line) for line in H100.splitlines()),
        *(_foundry("A100", line) for line in A100.splitlines()),
        *map(_torchtitan, TORCHTITAN),
    ]


def fit(published: Sequence[Run]) -> dict[str, float]:
    """Fit the constants; torchtitan's few runs weigh three times as much."""
    names = ("products H100", "products A100", "attention H100, Mosaic", "attention A100, Mosaic",
             "attention, torchtitan", "traffic", "traffic, compiled", "exposed", "fp8")  # fmt: skip
    before = dict(CLUSTERS)

    def residuals(values: np.ndarray) -> list[float]:
        hopper, ampere, early, early_ampere, attention, plain, compiled, exposed, model.FP8 = values
        for name, products, share in (
            ("H100", hopper, early), ("A100", ampere, early_ampere),
            ("torchtitan", hopper, attention),
        ):  # fmt: skip
            rates = dataclasses.replace(before[name].rates, products=products, attention=share)
            CLUSTERS[name] = dataclasses.replace(before[name], rates=rates)
        model.TRAFFIC[False], model.TRAFFIC[True], model.EXPOSED = plain, compiled, exposed
        return [
            np.log(run.measured / run.computed()) * (3 if run.cluster == "torchtitan" else 1)
            for run in published
        ]

    found = least_squares(
        residuals, [0.8, 0.8, 0.2, 0.3, 0.3, 500, 250, 0.7, 1.5],
        bounds=(
            [0.3, 0.3, 0.05, 0.05, 0.05, 50, 20, 0, 1],
            [0.95, 0.92, 1, 1, 1, 2000, 2000, 1, 2],
        ),
        loss="soft_l1", f_scale=0.05,
    )  # fmt: skip
    return dict(zip(names, map(float, found.x), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", action="store_true", help="fit the constants again")
    published = runs()
    if parser.parse_args().fit:
        for name, value in fit(published).items():
            print(f"{name:24} {value:8.3f}")
        return
    print(f"{'run':44} {'measured':>10} {'computed':>10} {'MFU':>7} {'error':>7}")
    for run in published:
        per_token = flops_per_token(run.config, run.layout.seq_len).training
        share = run.measured * per_token / CLUSTERS[run.cluster].peak
        print(
            f"{run.name:44} {run.measured:10,.0f} {run.computed():10,.0f} {share:7.1%}"
            f" {run.error():+7.1%}{'  *' if abs(run.error()) > 0.15 else ''}"
        )
    errors = np.abs([run.error() for run in published])
    print(
        f"{len(errors)} runs: {np.mean(errors <= 0.15):.1%} within 15 %, median"
        f" {np.median(errors):.1%}, worst {errors.max():.1%}"
    )


if __name__ == "__main__":
    main()
