"""Precision: bf16-mixed by default where the device computes in bf16, and no fp16, whose loss
would have to be scaled.
"""

from pathlib import Path

import pytest
import torch

from lit_pretrain.cli.train import precision
from lit_pretrain.cli.train.precision import (
    check_precision,
    cpu_has_bf16,
    default_precision,
    peak_dtype,
)
from lit_pretrain.errors import UserError


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fpu sse avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fp asimd bf16", True),
        ("fpu avx512f amx_tile", False),
    ],
)
def test_the_processor_says_what_it_can(
    flags: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: f"model name : X\nflags : {flags}\n")
    assert cpu_has_bf16() is has
    assert default_precision("cpu") == ("bf16-mixed" if has else "32-true")


def test_a_machine_that_does_not_say_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, **_: object) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_has_bf16() is False


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_a_gpu_is_asked_and_not_the_processor(
    accelerator: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: not bf16)
    assert default_precision(accelerator) == ("bf16-mixed" if bf16 else "32-true")
    assert default_precision("cpu") == (
        "32-true" if bf16 else "bf16-mixed"
    )  # a GPU that is not used decides nothing


@pytest.mark.parametrize("name", ["16-mixed", "16-true", "16"])
def test_fp16_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"fp16 is not supported.*bf16-mixed"):
        check_precision(name)
    for fine in ("bf16-mixed", "bf16-true", "32-true", "64-true"):
        check_precision(fine)


def test_the_dtype_whose_peak_counts() -> None:
    assert [peak_dtype(name) for name in ("bf16-mixed", "bf16-true", "32-true")] == [
        "bf16",
        "bf16",
        "fp32",
    ]
    assert peak_dtype("bf16-mixed", float8=True) == "fp8"
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert peak_dtype("32-true") == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
