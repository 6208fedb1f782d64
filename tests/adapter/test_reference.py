"""Adapters against peft and bitsandbytes: by committed figures everywhere, and directly where
they are installed.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lit_pretrain.adapter import nf4

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "adapter_reference", ROOT / "scripts" / "adapter_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load()
REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "reference.json").read_text())
CASES = [(kind, how) for kind in made.SHAPES for how in made.ADAPTERS]
TOLERANCE = 2e-5


def test_the_reference_covers_every_case() -> None:
    assert set(REFERENCE["peft"]) == {f"{kind}/{how}" for kind, how in CASES}
    assert set(REFERENCE["nf4"]) == set(made.nf4_inputs())
    assert REFERENCE["versions"]["peft"] == "0.21.2"


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_loss_and_gradients_are_those_of_peft(kind: str, how: str) -> None:
    expected = REFERENCE["peft"][f"{kind}/{how}"]
    loss, gradients = made.ours(kind, how)
    assert loss == pytest.approx(expected["loss"], rel=TOLERANCE)
    found = made.figures(gradients)
    assert found.keys() == expected["gradients"].keys()
    for name, (norm, *products) in expected["gradients"].items():
        assert norm > 1e-6, f"{name}: a gradient of nothing compares nothing"
        assert found[name][0] == pytest.approx(norm, rel=TOLERANCE), name
        # A product of two vectors is as exact as their lengths allow.
        size = gradients[name].numel() ** 0.5 * norm
        assert found[name][1:] == pytest.approx(products, abs=TOLERANCE * size), name


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_every_gradient_is_that_of_peft(kind: str, how: str) -> None:
    pytest.importorskip(
        "peft", reason="compares with peft itself: pip install peft==0.21.2 accelerate"
    )
    loss, gradients = made.theirs(kind, how)
    own_loss, own = made.ours(kind, how)
    assert own_loss == pytest.approx(loss, rel=TOLERANCE)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= TOLERANCE * gradient.norm(), name
    assert made.figures(gradients)[name] == pytest.approx(
        REFERENCE["peft"][f"{kind}/{how}"]["gradients"][name], rel=1e-4, abs=1e-7
    )


@pytest.mark.parametrize("name", sorted(made.nf4_inputs()))
def test_nf4_is_that_of_bitsandbytes_to_the_bit(name: str) -> None:
    matrix = made.nf4_inputs()[name]
    quantized = nf4.quantize(matrix)
    again = [
        nf4.dequantize_torch(quantized, tuple(matrix.shape), d)
        for d in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert [made.digest(part) for part in (*quantized, *again)] == REFERENCE["nf4"][name]


def test_nf4_is_that_of_the_installed_bitsandbytes() -> None:
    pytest.importorskip(
        "bitsandbytes",
        reason="compares with bitsandbytes itself: pip install --no-deps bitsandbytes",
    )
    inputs, digests = made.nf4_inputs(), made.nf4_digests()
    # With AVX-512 the kernel of 0.50.2 gives rows of 96 places the scales of other blocks, unlike
    # its general one: docs/experiments.md.
    sound = {name for name, matrix in inputs.items() if matrix.shape[-1] % 64 != 32}
    assert len(sound) == len(inputs) - 1
    assert {name: digests[name] for name in sound} == {
        name: REFERENCE["nf4"][name] for name in sound
    }
    assert all(
        digests[name][:4] == REFERENCE["nf4"][name][:4] for name in inputs
    )  # what it stores is right in any case
    for name in sound:
        matrix = inputs[name]
        quantized = nf4.quantize(matrix)
        for dtype in (torch.float32, torch.bfloat16):
            theirs = nf4.dequantize_bitsandbytes(quantized, tuple(matrix.shape), dtype)
            assert torch.equal(theirs, nf4.dequantize_torch(quantized, tuple(matrix.shape), dtype))


def test_pissa_trains_as_in_peft() -> None:
    """peft takes the first update out of W; we subtract it in the forward pass. Function and
    gradients are the same.
    """
    peft = pytest.importorskip(
        "peft", reason="compares with peft itself: pip install peft==0.21.2 accelerate"
    )
    net = made.network("llama")
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa"
    )
    model = peft.get_peft_model(made.transformers_model(net, "llama"), config)
    adapter = made.LoRA(rank=2, alpha=3.0, targets=("q_proj", "down_proj"), init="pissa")
    adapter.apply(net)
    with torch.no_grad():  # away from the start, where the update is zero
        for parameter in (p for p in net.parameters() if p.requires_grad):
            parameter.mul_(1.25)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.mul_(1.25)
    loss = made.loss_of(net.logits(net(made.tokens())))
    loss.backward()
    theirs = made.loss_of(model(made.tokens()).logits)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=TOLERANCE)
    gradient = model.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight.grad
    own = net.get_submodule("blocks.1.attention.q_proj").lora_B.grad
    assert (own - gradient).norm() <= TOLERANCE * gradient.norm()
