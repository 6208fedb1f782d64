"""Training FLOPs are those that are counted, and devices are found by the names drivers give."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.utils.flop_counter import FlopCounterMode

from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.scaling.flops import (
    find_device,
    flops_per_token,
    known_devices,
    lora_parameters,
    mfu,
    peak_flops,
    stage_cost,
)

ROOT = Path(__file__).parents[2]


def shape(name: str) -> ModelConfig:
    """One of the shapes that we ship."""
    return ModelConfig(
        **yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text())["model"]["net"]
    )


LLAMA3: dict[str, Any] = {"vocab_size": 128256, "n_kv_head": 8, "max_seq_len": 8192}
SHAPES: dict[str, tuple[ModelConfig, int]] = {
    "default": (ModelConfig(), 512),
    "tied": (ModelConfig(tie_embeddings=True, activation="relu2"), 256),
    "nanochat": (
        ModelConfig(
            value_embeddings="alternate", residual_scalars=True, embed_norm=True, qk_norm=True
        ),
        128,
    ),
    "gpt2": (
        ModelConfig(
            position="learned", activation="gelu", qkv_bias=True, ffn_bias=True, norm="layernorm"
        ),
        128,
    ),
    "tied gqa": (
        ModelConfig(tie_embeddings=True, n_kv_head=1, qk_norm=True, attention="sdpa"),
        256,
    ),
    "qwen3 0.6b": (shape("qwen3_0.6b"), 1024),
    "llama2 7b": (shape("llama2_7b"), 4096),
    "wide heads": (ModelConfig(head_dim=128, n_kv_head=1), 128),
    "llama3 8b": (shape("llama3_8b"), 8192),
    "llama3 70b": (ModelConfig(n_layer=80, width=8192, n_head=64, ffn_width=28672, **LLAMA3), 8192),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "llama3 70b" else name
        for name in SHAPES
    ],
)
def test_training_flops_are_those_that_torch_counts(name: str) -> None:
    config, seq_len = SHAPES[name]
    with torch.device("meta"):
        model, tokens_BT = Transformer(config), torch.zeros(2, seq_len, dtype=torch.int64)
        counter = FlopCounterMode(display=False)
        with counter:
            F.cross_entropy(
                model.logits(model(tokens_BT)).flatten(0, 1), tokens_BT.flatten()
            ).backward()
    assert (
        counter.get_total_flops() / tokens_BT.numel() == flops_per_token(config, seq_len).training
    )


def test_llama3_8b_at_8192() -> None:
    config, seq_len = SHAPES["llama3 8b"]
    flops = flops_per_token(config, seq_len)
    assert flops.training == 5.791285248e10
    assert flops.dense == 6 * (8_030_261_248 - 128256 * 4096 - 65 * 4096)
    assert flops.training - flops.causal == flops.causal - flops.dense


def test_the_numbers_of_llama3_405b() -> None:
    config = shape("llama3_405b")
    flops, tokens = flops_per_token(config, 8192), 15.6e12
    assert flops.six_n * tokens == pytest.approx(3.799e25, rel=1e-4)
    assert flops.training * tokens == pytest.approx(4.096e25, rel=1e-4)


@pytest.mark.parametrize(("rate", "percent"), [(5762, 33.74), (6667, 39.04)])
def test_mfu_of_torchtitan(rate: float, percent: float) -> None:
    # Llama 3 8B, T = 8192, on H100
    flops = flops_per_token(shape("llama3_8b"), 8192).training
    assert 100 * mfu(rate, flops, 989e12) == pytest.approx(percent, abs=0.005)


MPT = {
    "760m": (1536, 24),
    "1b": (2048, 24),
    "3b": (2560, 32),
    "7b": (4096, 32),
    "13b": (5120, 40),
    "30b": (7168, 48),
    "70b": (8192, 80),
}
# LLM Foundry's tables: model, sequence length, tokens per second of a device, MFU in per cent,
# parameters, and the peak that its code assumes.
MOSAIC = [
    ("70b", 2048, 1039, 42.57, 64862437376, 989.5e12),
    ("30b", 8192, 1384, 29.92, 30019254272, 989.5e12),
    ("30b", 2048, 2308, 43.92, 29975214080, 989.5e12),
    ("13b", 16384, 2985, 35.55, 12927354880, 989.5e12),
    ("7b", 65536, 1956, 28.59, 6918905856, 989.5e12),
    ("7b", 8192, 6935, 37.14, 6684024832, 989.5e12),
    ("7b", 2048, 10643, 46.44, 6658859008, 989.5e12),
    ("3b", 512, 27965, 46.32, 2647905280, 989.5e12),
    ("1b", 8192, 29157, 37.73, 1328533504, 989.5e12),
    ("760m", 2048, 67971, 37.57, 760470528, 989.5e12),
    ("3b", 512, 36527, 30.25, 2647905280, 1979e12),  # FP8
    ("7b", 2048, 4641, 64.23, 6658859008, 312e12),  # A100
    ("13b", 32768, 1016, 51.69, 13011240960, 312e12),
    ("1b", 512, 23148, 60.68, 1312804864, 312e12),
]


@pytest.mark.parametrize(("name", "seq_len", "rate", "percent", "parameters", "peak"), MOSAIC)
def test_mfu_of_mosaic(
    name: str, seq_len: int, rate: float, percent: float, parameters: int, peak: float
) -> None:
    width, layers = MPT[name]
    heads = {"760m": 12, "1b": 16, "3b": 20, "7b": 32, "13b": 40, "30b": 56, "70b": 64}[name]
    bias = {"norm_bias": True, "qkv_bias": True, "attn_out_bias": True, "ffn_bias": True}
    config = ModelConfig(
        vocab_size=50368, width=width, n_layer=layers, n_head=heads, max_seq_len=seq_len,
        position="learned", norm="layernorm",
        activation="gelu", tie_embeddings=True, **bias,
    )  # fmt: skip
    flops = flops_per_token(config, seq_len)
    assert count_parameters(config).total == parameters
    # its count is 6 N of all parameters and full attention
    assert 100 * mfu(rate, flops.six_n + flops.attention, peak) == pytest.approx(percent, abs=0.05)


# ------------------------------------------------------------------ stages


CONFIG = ModelConfig(n_kv_head=1)


def test_frozen_weights_spare_their_gradients() -> None:
    with torch.device("meta"):
        net, tokens_BT = Transformer(CONFIG), torch.zeros(2, 128, dtype=torch.int64)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.token_embedding.weight.requires_grad_(
        True
    )  # so that gradients flow through every frozen matrix, as to LoRA's first factors
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net.logits(net(tokens_BT)).flatten(0, 1), tokens_BT.flatten()).backward()
    cost = stage_cost(CONFIG, 128, "lora", lora_rank=16)
    counted = counter.get_total_flops() / tokens_BT.numel()
    assert cost.flops_per_token - 6.0 * cost.added == pytest.approx(counted, rel=1e-6)


def test_lora_has_two_factors_beside_each_matrix() -> None:
    with torch.device("meta"):
        net = Transformer(CONFIG)
    matrices = [m for m in net.blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert lora_parameters(CONFIG, 8) == sum(8 * (m.in_features + m.out_features) for m in matrices)


def test_qlora_keeps_the_matrices_beside_which_its_factors_stand_in_four_bits() -> None:
    with torch.device("meta"):
        net = Transformer(CONFIG)
    lora, qlora = (stage_cost(CONFIG, 128, stage, lora_rank=16) for stage in ("lora", "qlora"))
    assert (lora.quantized, qlora.quantized) == (
        0,
        sum(m.weight.numel() for m in net.blocks.modules() if isinstance(m, torch.nn.Linear)),
    )
    assert qlora._replace(quantized=0) == lora


def test_the_other_stages() -> None:
    training = flops_per_token(CONFIG, 512).training
    assert (
        stage_cost(CONFIG, 512, "pretrain").flops_per_token
        == stage_cost(CONFIG, 512, "sft").flops_per_token
        == training
    )
    dpo = stage_cost(CONFIG, 512, "dpo")
    assert (dpo.flops_per_token, dpo.reference) == (training * 4 / 3, True)


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
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "cpu", "", "H1000", "XH100", "B2000", "V1000",
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
