"""Precision: the default that the device computes fast without losing the optimizer's accuracy."""

from pathlib import Path

import torch


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16 or AMX on x86, BF16 on Arm)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def default_precision(accelerator: str) -> str:
    """bf16-mixed where the device computes in bf16, else 32-true.

    bf16-true is never the default: it would keep the optimizer's moments and the weights themselves in bf16.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if cpu_has_bf16() else "32-true"


def peak_dtype(precision: str) -> str:
    """The dtype of matrix products on a GPU in a precision: what its peak is counted in."""
    if precision.startswith("bf16"):
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
