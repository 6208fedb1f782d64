"""Compiled: whether torch.compile can work on this machine, and if not, why."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Optional

import torch


def can_compile(device: torch.device) -> Optional[str]:
    """None if `torch.compile` has what it needs for the device, else the reason why not."""
    if device.type == "cpu":
        wanted = os.environ.get("CXX")
        found = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")
        if found is None:
            return "no C++ compiler found (g++ or clang++, or set CXX)"
        # What is compiled is a Python extension; Debian keeps the headers in a package of their own.
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        return None if header.is_file() else f"{header} is missing (on Debian: python3-dev)"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 7 else f"Triton needs compute capability 7.0, this device has {major}.{minor}"
    return f"not tried on {device.type}"
