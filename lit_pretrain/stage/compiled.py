"""Compiled: whether torch.compile can work on this machine, and if not, why."""

import os
import shutil
from typing import Optional

import torch


def can_compile(device: torch.device) -> Optional[str]:
    """None if `torch.compile` has what it needs for the device, else the reason why not."""
    if device.type == "cpu":
        wanted = os.environ.get("CXX")
        found = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")
        return None if found else "no C++ compiler found (g++ or clang++, or set CXX)"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 7 else f"Triton needs compute capability 7.0, this device has {major}.{minor}"
    return f"not tried on {device.type}"
