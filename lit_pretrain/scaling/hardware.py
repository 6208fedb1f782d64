"""Hardware: dense peak of known devices by dtype, matched on the names that drivers report.

Vendors' dense figures (never the sparse ones) in TFLOP/s, as collected by torchtitan and nanochat. An unknown device has no
peak, and so no model-FLOPs utilisation: a guessed denominator gives a number that means nothing.
"""

import re
from typing import Optional

_BF16: tuple[tuple[str, float], ...] = (
    # order matters: the first pattern that is found decides
    (r"GB200", 2500.0),
    (r"B200", 2250.0),
    (r"B100", 1800.0),
    (r"H200 NVL", 836.0),
    (r"G?H200", 989.0),
    (r"H100 NVL", 835.0),
    (r"H100 PCIe", 756.0),
    (r"H100", 989.0),
    (r"H20\b", 148.0),
    (r"A100", 312.0),
    (r"A6000", 154.85),
    (r"L40S", 362.0),
    (r"L4\b", 121.0),
    (r"RTX 5090", 209.5),
    (r"RTX 4090", 165.2),
    (r"MI355X", 2500.0),
    (r"MI300X", 1307.0),
)
_TF32_SHARE = 0.5
"""Tensor cores run TF32 at half the rate of bf16 on every device of the table that has it."""


def peak_flops(device: str, dtype: str) -> Optional[float]:
    """Dense peak in FLOP/s of a device for matrix products in a dtype; None if the device or the dtype is not known.

    Args:
        device: The driver's name of it, such as "NVIDIA H100 80GB HBM3".
        dtype: bf16, fp16 or tf32.
    """
    for pattern, tera in _BF16:
        if re.search(pattern, device):
            if dtype in ("bf16", "fp16"):
                return tera * 1e12
            if dtype == "tf32" and not device.startswith("AMD"):
                return tera * _TF32_SHARE * 1e12
            return None
    return None
