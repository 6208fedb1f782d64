"""Devices are found by the names that drivers report, and an unknown one has no peak."""

import pytest

from lit_pretrain.scaling.hardware import find_device, known_devices, peak_flops

GIB = 2**30
DRIVERS = [  # name as the driver reports it, dense bf16 TFLOP/s, GiB of memory within a little
    ("NVIDIA GB200", 2500, 173),
    ("NVIDIA B200", 2250, 179),
    ("NVIDIA H200", 989, 140),
    ("NVIDIA H200 NVL", 836, 140),
    ("NVIDIA GH200 480GB", 989, 95),
    ("NVIDIA H100 80GB HBM3", 989, 80),
    ("NVIDIA H100 PCIe", 756, 80),
    ("NVIDIA H100 NVL", 835, 94),
    ("NVIDIA H800", 989, 80),
    ("NVIDIA H20", 148, 96),
    ("NVIDIA A100-SXM4-80GB", 312, 80),
    ("NVIDIA A100 80GB PCIe", 312, 80),
    ("NVIDIA A100-SXM4-40GB", 312, 40),
    ("NVIDIA A100-PCIE-40GB", 312, 40),
    ("NVIDIA A800-SXM4-80GB", 312, 80),
    ("NVIDIA RTX A6000", 154.85, 48),
    ("NVIDIA A40", 149.7, 45),
    ("NVIDIA L40S", 362, 45),
    ("NVIDIA L4", 121, 22.5),
    ("NVIDIA GeForce RTX 5090", 209.5, 31.8),
    ("NVIDIA GeForce RTX 4090", 165.2, 24),
    ("AMD Instinct MI300X", 1307, 179),
    ("AMD Instinct MI355X", 2500, 268),
    ("TPU v4", 275, 30),
    ("TPU v5 lite", 197, 15),
    ("TPU v5p", 459, 88),
    ("TPU v6 lite", 918, 30),
]


@pytest.mark.parametrize(("name", "tera", "memory"), DRIVERS)
def test_names_of_drivers(name: str, tera: float, memory: float) -> None:
    device = find_device(name)
    assert device is not None
    assert peak_flops(name, "bf16") == tera * 1e12
    assert device.memory / GIB == pytest.approx(memory, rel=0.03)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce GTX 1080", "NVIDIA L40", "NVIDIA RTX A4000", "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "cpu", "",
    ],
)  # fmt: skip
def test_unknown_devices_have_no_peak(name: str) -> None:
    assert find_device(name) is None
    assert peak_flops(name, "bf16") is None


def test_dtypes() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp8") == 1979e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "tf32") == 494.5e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp8") is None
    assert peak_flops("Tesla V100-SXM2-32GB", "bf16") is None
    assert peak_flops("Tesla V100-SXM2-32GB", "fp16") == 125e12
    assert peak_flops("AMD Instinct MI300X", "tf32") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None


def test_every_device_is_found_by_its_own_name_and_has_a_sourced_default() -> None:
    for name in known_devices():
        device = find_device(name)
        assert device is not None
        assert device.name == name
        default = device.utilization("bf16")
        assert 0.2 < default.value < 0.6
        assert default.source
