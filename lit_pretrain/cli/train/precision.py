"""Precision: a default that the device computes fast and the optimizer can live with."""

from pathlib import Path

import torch

from lit_pretrain.errors import UserError


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 itself (AVX512-BF16 or AMX on x86, BF16 on Arm)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def default_precision(accelerator: str) -> str:
    """Choose bf16-mixed where the device computes in bf16, else 32-true.

    bf16-true is never the default: it would keep the optimizer's moments and the weights themselves
    in bf16.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        )
    return "bf16-mixed" if cpu_has_bf16() else "32-true"


def check_precision(precision: str) -> None:
    """Refuse fp16.

    It needs its loss scaled, and that would reach the backward pass of the last micro-batch of
    a step only.

    Raises:
        UserError: Names what to take in its place.
    """
    if str(precision).startswith("16"):
        raise UserError(
            f"trainer.precision={precision}: fp16 is not supported, on no device; take bf16-mixed"
            " (the exponents of fp32, so that nothing need be scaled), 32-true, or leave it out to"
            " have what the device computes fast"
        )


def peak_dtype(precision: str, *, float8: bool = False) -> str:
    """Name the dtype of matrix products on a GPU in a precision: what its peak is counted in.

    Args:
        precision: `trainer.precision`.
        float8: Whether the blocks multiply in fp8 (`model.float8`).
    """
    if float8:
        return "fp8"
    if precision.startswith("bf16"):
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
