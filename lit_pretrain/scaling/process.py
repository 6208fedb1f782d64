"""Process: what a training process takes of a device's memory beside its tensors."""

from __future__ import annotations

from typing import Literal

from lit_pretrain.scaling.hardware import GIB

BASE: dict[str, float] = {"cuda": 2 * GIB, "cpu": GIB / 2}
"""Bytes before any tensor. CUDA: driver, communication and fragmentation, 1–3 GiB, not measured here. CPU: Python and its libraries; 534 MB
were measured."""
HEAP: dict[str, float] = {"cuda": 0.0, "cpu": 0.3}
"""Share of the tensors' peak that comes on top. glibc's heap keeps what is freed between blocks in use: the process of a `fit` took 1.29
times its planned tensors uncompiled in fp32 (1.00 with MALLOC_MMAP_THRESHOLD_=65536, which gives every tensor pages of its own), 1.41 times
uncompiled in bf16, 1.17 times compiled in fp32, 1.25 times compiled in bf16."""


def beside(tensors: float, device: Literal["cpu", "cuda"]) -> float:
    """Bytes of a process beside tensors that take so many at the peak."""
    return BASE[device] + HEAP[device] * tensors


def room(limit: float, device: Literal["cpu", "cuda"]) -> float:
    """Bytes of tensors that a process of at most `limit` bytes can hold."""
    return (limit - BASE[device]) / (1 + HEAP[device])


def source(device: Literal["cpu", "cuda"]) -> str:
    """Where these numbers come from."""
    if device == "cuda":
        return "driver, communication, fragmentation: 1–3 GiB on CUDA, not measured here"
    return "Python and its libraries, and what the heap keeps of freed tensors: measured 17 to 41 % of the tensors"
