"""The named schemes of initial weights, by their statistics and by what they make the network
do.
"""

import math

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
            expected = 384**-0.5
        assert std == pytest.approx(expected, rel=0.02, abs=1e-12), name
    bound = math.sqrt(3 / 384)
    assert (
        bound * 0.99 < float(model.blocks[0].attention.q_proj.weight.abs().max()) <= bound
    )  # uniform, not normal


def test_zero_residual_starts_as_the_identity() -> None:
    model = Transformer(ModelConfig(n_layer=3, init="zero_residual", embed_norm=True))
    tokens_BT = torch.randint(8192, (1, 20))
    embedding = F.rms_norm(model.token_embedding(tokens_BT), (384,), eps=1e-5)
    torch.testing.assert_close(model(tokens_BT), F.rms_norm(embedding, (384,), eps=1e-5))


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
