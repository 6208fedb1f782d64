"""FLOPs: how many a training step takes, and how many known devices deliver; their memory, too.

Devices are matched on the names that drivers report. Peaks are vendors' dense figures (never the
sparse ones) in TFLOP/s, as collected by torchtitan, nanochat, Composer and data sheets. Memory is
what `nvidia-smi` shows of a whole device where that was looked up, else what the vendor states. An
unknown device has no peak, and so no model-FLOPs utilisation: a guessed denominator gives a number
that means nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_pretrain.model.config import ModelConfig, count_parameters


class FlopsPerToken(NamedTuple):
    """Training FLOPs (forward and backward, a multiply-add counted as two) per input token."""

    training: float
    """6 N_matmul + full attention scores, as `torch.utils.flop_counter` counts: 12 L H K T."""
    causal: float
    """`training` with only the scores that a causal mask needs: half of the attention term."""
    dense: float
    """6 N_matmul alone."""
    six_n: float
    """6 N of all parameters, the C = 6 N D of scaling laws (Kaplan et al. 2020, section 2.1;
    Hoffmann et al. 2022, appendix F).
    """
    attention: float
    """Attention scores alone: training - dense."""


def flops_per_token(
    config: ModelConfig, seq_len: int, *, adapter_parameters: int | None = None
) -> FlopsPerToken:
    """Count the FLOPs per token of a shape at a sequence length.

    An embedding look-up is no matrix product and counts nothing; a tied head counts, because it
    multiplies. Sliding windows and document masks get no credit: kernels differ in what they skip.

    Args:
        config: The shape.
        seq_len: Tokens of a row.
        adapter_parameters: Parameters of the adapter that is trained in place of the network. A
            frozen matrix then costs 4 FLOPs per parameter, because it gets no gradient of its own.
    """
    counts = count_parameters(config)
    dense = (
        6.0 * counts.matmul
        if adapter_parameters is None
        else 4.0 * counts.matmul + 6.0 * adapter_parameters
    )
    attention = 12.0 * config.n_layer * config.n_head * config.head_size * seq_len
    return FlopsPerToken(
        training=dense + attention,
        causal=dense + attention / 2,
        dense=dense,
        six_n=6.0 * counts.total,
        attention=attention,
    )


def mfu(tokens_per_second: float, flops: float, peak: float) -> float:
    """Compute the model-FLOPs utilisation, the share of the peak that training reaches.

    The definition is that of Chowdhery et al. 2022, appendix B.

    Args:
        tokens_per_second: Throughput, summed over the same devices as `peak`.
        flops: Training FLOPs per token, without those that activation checkpointing recomputes.
        peak: Dense peak in FLOP/s.
    """
    return tokens_per_second * flops / peak


# Kinds of training other than pretraining.

StageName = Literal["pretrain", "sft", "dpo", "lora", "qlora"]


class StageCost(NamedTuple):
    """What one kind of training costs per token, and which weights it trains."""

    flops_per_token: float
    """Training FLOPs, with full attention."""
    trainable: float
    """Share of the network's own parameters that get gradients and moments."""
    added: int
    """Parameters that an adapter adds and trains."""
    reference: bool
    """Whether a frozen copy of the network also runs forward."""
    quantized: int
    """Frozen parameters of the network that are stored in four bits."""
    why: str
    """Arithmetic behind `flops_per_token`, for the reader of a plan."""


def stage_cost(
    config: ModelConfig, seq_len: int, stage: StageName, lora_rank: int = 16
) -> StageCost:
    """Count the cost of one kind of training.

    A matrix product costs 2 FLOPs per weight and token forward, 2 for the gradient of its input and
    2 for that of its weight. Frozen weights save the last; a reference adds a forward pass.
    Attention scores have no weights: forward 4 H K T a layer, backward twice that.

    Args:
        config: Shape of the network.
        seq_len: Tokens of a row.
        stage: pretrain and sft train all weights. dpo adds a frozen reference. lora freezes the
            weights and trains two factors beside each matrix of the blocks. qlora also stores
            these matrices in four bits; restoring them is not counted.
        lora_rank: Rank of the factors.
    """
    flops = flops_per_token(config, seq_len)
    if stage == "dpo":
        return StageCost(
            flops.training * 4 / 3,
            1.0,
            0,
            True,
            0,
            "forward and backward of the policy, forward of the reference: 4/3",
        )
    if stage in ("lora", "qlora"):
        added, matmul = lora_parameters(config, lora_rank), count_parameters(config).matmul
        frozen = 4.0 * matmul
        quantized = matmul - config.vocab_size * config.width if stage == "qlora" else 0
        why = (
            f"frozen weights 4 N instead of 6 N, {added:,} LoRA weights 6 N (rank {lora_rank},"
            " every matrix of the blocks)"
        )
        return StageCost(frozen + flops.attention + 6.0 * added, 0.0, added, False, quantized, why)
    return StageCost(flops.training, 1.0, 0, False, 0, "all weights: forward 2 N, backward 4 N")


def lora_parameters(config: ModelConfig, rank: int) -> int:
    """Count the weights of LoRA's factors beside every matrix of the blocks.

    Each matrix adds rank times the sum of its sides (Hu et al. 2021, section 4.1).
    """
    d, f = config.width, config.ffn_size
    q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
    sides = 2 * (d + q) + 2 * (d + k) + (3 if config.gated else 2) * (d + f)
    return config.n_layer * rank * sides


GIB = 2**30
_MIB = 2**20


@dataclass(frozen=True)
class Utilization:
    """A share with its source, such as the share of the peak that training reaches."""

    value: float
    source: str


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    bf16: float | None
    """Dense peak of bf16 matrix products in TFLOP/s; None for a device without bf16 units."""
    memory: int
    """Bytes of one device."""
    fp16: float | None = None
    """Dense peak of fp16, where it differs from bf16."""
    fp8: float | None = None
    tf32: float | None = None

    def peak(self, dtype: str) -> float | None:
        """Return the dense peak in FLOP/s for bf16, fp16, fp8 or tf32; None if it is not known."""
        if dtype not in ("bf16", "fp16", "fp8", "tf32"):
            return None
        tera = {
            "bf16": self.bf16,
            "fp16": self.fp16 or self.bf16,
            "fp8": self.fp8,
            "tf32": self.tf32,
        }[dtype]
        return None if tera is None else tera * 1e12

    def utilization(self, dtype: str) -> Utilization:
        """Return the MFU that a plan assumes on this device."""
        if dtype == "fp8":
            return Utilization(
                0.25, "Mosaic's LLM Foundry, 12 FP8 runs on H100: 14–30 % of the FP8 peak"
            )
        if self.name.startswith(("H100", "H200", "GH200")):
            return Utilization(
                0.40,
                "Llama 3 405B 38–43 % on 16,384 H100; Mosaic's H100 BF16 table, ≥128 GPUs: median"
                " 41.3 %; torchtitan 33.7–39.0 %",
            )
        if self.name.startswith("A100"):
            return Utilization(
                0.50,
                "Mosaic's LLM Foundry, A100-80GB: 39–64 %, median 54.1 %; below it, as other"
                " loops are",
            )
        return Utilization(
            0.35, f"assumed: no published table of {self.name} is known here; below that of H100"
        )


def _nvidia(name: str, bf16: float, memory: int, fp8: float | None = None) -> Device:
    # On every NVIDIA device of the table, tensor cores run TF32 at half the rate of bf16.
    return Device(name, bf16, memory, fp8=fp8, tf32=bf16 / 2)


# Order matters: the first pattern that matches decides.
_DEVICES: tuple[tuple[str, Device], ...] = (
    (r"GB200", _nvidia("GB200", 2500.0, 186 * 10**9, 5000.0)),
    (r"B200", _nvidia("B200", 2250.0, 183359 * _MIB, 4500.0)),
    (r"B100", _nvidia("B100", 1800.0, 180 * 10**9, 3500.0)),
    (r"H200 NVL", _nvidia("H200 NVL", 836.0, 143771 * _MIB, 1671.0)),
    (r"GH200", _nvidia("GH200", 989.0, 97871 * _MIB, 1979.0)),
    (r"H200", _nvidia("H200", 989.0, 143771 * _MIB, 1979.0)),
    (r"H100 NVL", _nvidia("H100 NVL", 835.0, 95830 * _MIB, 1671.0)),
    (r"H100 PCIe", _nvidia("H100 PCIe", 756.0, 81559 * _MIB, 1513.0)),
    (r"H100", _nvidia("H100", 989.0, 81559 * _MIB, 1979.0)),
    (r"H800 PCIe", _nvidia("H800 PCIe", 756.0, 81559 * _MIB, 1513.0)),
    (r"H800", _nvidia("H800", 989.0, 81559 * _MIB, 1979.0)),
    (r"\bH20\b", _nvidia("H20", 148.0, 97871 * _MIB, 296.0)),
    (r"A[18]00.*40GB", _nvidia("A100 40GB", 312.0, 40960 * _MIB)),
    (r"A[18]00\b(?!0)", _nvidia("A100 80GB", 312.0, 81920 * _MIB)),
    (r"A6000", _nvidia("RTX A6000", 154.85, 49140 * _MIB)),
    (r"\bA40\b", _nvidia("A40", 149.7, 46068 * _MIB)),
    (r"\bA30\b", _nvidia("A30", 165.0, 24 * 10**9)),
    (r"L40S", _nvidia("L40S", 362.0, 46068 * _MIB, 733.0)),
    (r"\bL4\b", _nvidia("L4", 121.0, 23034 * _MIB, 242.0)),
    (r"RTX 5090(?! Laptop)", _nvidia("RTX 5090", 209.5, 32607 * _MIB, 419.0)),
    (r"RTX 4090(?! Laptop)", _nvidia("RTX 4090", 165.2, 24564 * _MIB, 330.3)),
    (r"RTX 3090(?! Ti)", _nvidia("RTX 3090", 71.0, 24 * 10**9)),
    (r"V100.*32GB", Device("V100 32GB", None, 32 * 10**9, fp16=125.0)),
    (r"V100", Device("V100 16GB", None, 16 * 10**9, fp16=125.0)),
    (r"\bT4\b", Device("T4", None, 15360 * _MIB, fp16=65.0)),
    (r"MI355X", Device("MI355X", 2500.0, 288 * 10**9, fp8=5000.0)),
    (r"MI325X", Device("MI325X", 1307.0, 256 * 10**9, fp8=2615.0)),
    (r"MI300X", Device("MI300X", 1307.0, 192 * 10**9, fp8=2615.0)),
    (r"MI300A", Device("MI300A", 980.6, 128 * 10**9, fp8=1961.0)),
    (r"MI250X", Device("MI250X", 383.0, 128 * 10**9)),
    (r"TPU v?6e|TPU v6 lite|Trillium", Device("TPU v6e", 918.0, 32 * 10**9)),
    (r"TPU v?5p|TPU v5$", Device("TPU v5p", 459.0, 95 * 10**9)),
    (r"TPU v?5e|TPU v5 lite", Device("TPU v5e", 197.0, 16 * 10**9)),
    (r"TPU v4", Device("TPU v4", 275.0, 32 * 10**9)),
)


def find_device(name: str) -> Device | None:
    """Find a device by its driver's name or its short name; None if it is not known.

    "NVIDIA H100 80GB HBM3" and "H100" name the same device.
    """
    if " MIG " in name:  # a slice of a device has a slice of its peak
        return None
    for pattern, device in _DEVICES:
        # H1000 is not the H100, nor is XH100.
        if re.search(rf"(?<![a-z0-9])(?:{pattern})(?![0-9])", name, re.IGNORECASE):
            return device
    return None


def known_devices() -> list[str]:
    """List the names of all devices, as `find_device` takes them."""
    return [device.name for _, device in _DEVICES]


def peak_flops(device: str, dtype: str) -> float | None:
    """Return the dense peak of a device in FLOP/s; None if the device or the dtype is not known.

    Args:
        device: The driver's name of the device, such as "NVIDIA H100 80GB HBM3".
        dtype: Type of the operands: bf16, fp16, fp8 or tf32.
    """
    found = find_device(device)
    return None if found is None else found.peak(dtype)


# Memory that a training process takes beside its tensors.

BASE: dict[str, float] = {"cuda": 2 * GIB, "cpu": GIB / 2}
"""Bytes that a process takes before any tensor.

CUDA: driver, communication and fragmentation, 1–3 GiB, not measured here. CPU: Python and its
libraries; 534 MB were measured.
"""
HEAP: dict[str, float] = {"cuda": 0.0, "cpu": 0.3}
"""Share of the tensors' peak that the heap takes on top.

glibc keeps memory that is freed between blocks in use: the process of a `fit` took 1.29 times its
planned tensors uncompiled in fp32 (1.00 with MALLOC_MMAP_THRESHOLD_=65536, which gives every tensor
pages of its own), 1.41 times uncompiled in bf16, 1.17 times compiled in fp32, 1.25 times compiled
in bf16.
"""


def beside(tensors: float, device: Literal["cpu", "cuda"]) -> float:
    """Return the bytes that a process takes beside tensors with a peak of `tensors` bytes."""
    return BASE[device] + HEAP[device] * tensors


def room(limit: float, device: Literal["cpu", "cuda"]) -> float:
    """Return the bytes of tensors that a process of at most `limit` bytes can hold."""
    return (limit - BASE[device]) / (1 + HEAP[device])


def source(device: Literal["cpu", "cuda"]) -> str:
    """Say where `BASE` and `HEAP` come from."""
    if device == "cuda":
        return "driver, communication, fragmentation: 1–3 GiB on CUDA, not measured here"
    return (
        "Python and its libraries, and what the heap keeps of freed tensors: measured 17 to 41 % of"
        " the tensors"
    )
