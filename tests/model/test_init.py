"""The named schemes of initial weights, by their statistics and by what they make the network
do.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

ALL = {
    "qkv_bias": True,
    "ffn_bias": True,
    "value_embeddings": "alternate",
    "residual_scalars": True,
    "qk_norm": True,
}


def deviations(model: Transformer) -> dict[str, float]:
    return {
        name: parameter.detach().std().item()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }


@pytest.mark.parametrize("init", ["normal", "gpt2", "zero_residual"])
def test_gains_biases_gates_and_scalars_start_neutral(init: str) -> None:
    model = Transformer(ModelConfig(n_layer=2, vocab_size=64, init=init, **ALL))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or name == "residual_scale_L":
            assert (parameter == 1).all(), name
        elif name.endswith(("bias", "value_gate.weight")):
            assert (parameter == 0).all(), name
        elif name == "embedding_scale_L":
            assert (parameter == 0.1).all()


def test_normal() -> None:
    torch.manual_seed(0)
    for name, std in deviations(
        Transformer(ModelConfig(n_layer=2, init="normal", init_std=0.03))
    ).items():
        assert std == pytest.approx(0.03, rel=0.02), name


def test_gpt2_divides_what_writes_to_the_residual_stream() -> None:
    torch.manual_seed(0)
    for name, std in deviations(
        Transformer(ModelConfig(n_layer=8, init="gpt2", position="learned"))
    ).items():
        writes = "out_proj" in name or "down_proj" in name
        assert std == pytest.approx(0.02 / 4 if writes else 0.02, rel=0.02), name


def test_zero_residual() -> None:
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(
            n_layer=2, init="zero_residual", activation="relu2", value_embeddings="alternate"
        )
    )
    for name, std in deviations(model).items():
        if name == "token_embedding.weight":
            expected = 1.0
        elif name == "head.weight":
            expected = 0.001
        elif "out_proj" in name or "down_proj" in name or "value_gate" in name:
            expected = 0.0
        else:
            expected = 192**-0.5
        assert std == pytest.approx(expected, rel=0.02, abs=1e-12), name
    bound = math.sqrt(3 / 192)
    assert (
        bound * 0.99 < float(model.blocks[0].attention.q_proj.weight.abs().max()) <= bound
    )  # uniform, not normal


PLAIN: dict[str, Any] = {"n_layer": 5, "width": 192, "n_head": 3, "vocab_size": 512}
CONSTANTS: dict[str, Any] = {
    "embedding_std": 0.8, "ffn_in_scale": 0.4, "residual_scale_init": (1.15, 1.05),
    "embedding_scale_init": (0.2, 0.05), "value_gate_init": 0.02,
}  # fmt: skip
"""nanochat's first values."""


@pytest.mark.parametrize("init", ["normal", "gpt2", "zero_residual"])
@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_first_values_by_part(init: str, activation: str) -> None:
    """What an option names has its values; everything else has those of a network without it."""
    shape = {**PLAIN, **ALL, "init": init, "activation": activation}
    torch.manual_seed(0)
    plain = dict(Transformer(ModelConfig(**shape)).named_parameters())
    for option, value in CONSTANTS.items():
        torch.manual_seed(0)
        model = Transformer(ModelConfig(**shape, **{option: value}))
        for name, weight in model.named_parameters():
            before = plain[name].detach()
            after = weight.detach()
            if option == "embedding_std" and name == "token_embedding.weight":
                assert after.std().item() == pytest.approx(0.8, rel=0.02)
            elif option == "ffn_in_scale" and name.endswith(("up_proj.weight", "gate_proj.weight")):
                assert torch.equal(after, 0.4 * before), name
            elif option == "residual_scale_init" and name == "residual_scale_L":
                torch.testing.assert_close(after, torch.tensor([1.15, 1.125, 1.1, 1.075, 1.05]))
            elif option == "embedding_scale_init" and name == "embedding_scale_L":
                torch.testing.assert_close(after, torch.tensor([0.2, 0.1625, 0.125, 0.0875, 0.05]))
            elif option == "value_gate_init" and name.endswith("value_gate.weight"):
                assert (after >= 0).all()
                assert after.max().item() == pytest.approx(0.02, rel=0.2)
            elif option != "value_gate_init":  # whose draws move those that follow
                assert torch.equal(after, before), (option, name)


def test_pairs_draw_no_random_numbers() -> None:
    torch.manual_seed(0)
    plain = dict(Transformer(ModelConfig(**PLAIN)).named_parameters())
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**PLAIN, bigram_rows=64))
    for name, weight in model.named_parameters():
        if not name.startswith("bigram_"):
            assert torch.equal(weight, plain[name]), name


def test_one_layer_has_the_first_values() -> None:
    model = Transformer(
        ModelConfig(n_layer=1, residual_scalars=True, residual_scale_init=(1.15, 1.05))
    )
    assert model.residual_scale_L is not None
    assert model.residual_scale_L.tolist() == pytest.approx([1.15])


def test_zero_residual_starts_as_the_identity() -> None:
    model = Transformer(ModelConfig(n_layer=3, init="zero_residual", embed_norm=True))
    tokens_BT = torch.randint(8192, (1, 20))
    embedding = F.rms_norm(model.token_embedding(tokens_BT), (192,), eps=1e-5)
    torch.testing.assert_close(model(tokens_BT), F.rms_norm(embedding, (192,), eps=1e-5))


@pytest.mark.parametrize("init", ["normal", "gpt2", "zero_residual"])
def test_the_first_loss_is_that_of_guessing(init: str) -> None:
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(n_layer=4, vocab_size=512, init=init, embed_norm=init == "zero_residual")
    )
    tokens_BT = torch.randint(512, (2, 128))
    loss = F.cross_entropy(
        model.logits(model(tokens_BT))[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
    )
    assert float(loss) == pytest.approx(math.log(512), abs=0.15)
