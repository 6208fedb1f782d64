"""Rotary positions: a rotation that only differences survive, exact at any cast."""

import math

import pytest
import torch

from lit_pretrain.model.attention import Rotary, rotary_frequencies, rotate
from lit_pretrain.model.config import ModelConfig, RopeScaling


def test_a_pair_of_channels_is_turned_as_a_complex_number() -> None:
    rotary = Rotary(ModelConfig(width=24, n_head=3, rope_theta=100.0)).double()
    x_BTHK = torch.randn(2, 10, 3, 8, dtype=torch.float64)
    pairs = torch.view_as_complex(torch.stack((x_BTHK[..., :4], x_BTHK[..., 4:]), -1))
    angle = torch.arange(10)[:, None, None] * 100.0 ** (
        -torch.arange(0, 8, 2, dtype=torch.float64) / 8
    )
    turned = torch.view_as_real(pairs * torch.exp(1j * angle))
    torch.testing.assert_close(
        rotate(x_BTHK, rotary(10)),
        torch.cat((turned[..., 0], turned[..., 1]), -1),
        rtol=0,
        atol=1e-6,
    )


def test_scores_depend_on_the_distance_only() -> None:
    rotary = Rotary(ModelConfig(width=64, n_head=1, max_seq_len=5000)).double()
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64).unbind()

    def score(query: int, key: int) -> float:
        places = [rotary(1, torch.tensor([[place]])) for place in (query, key)]
        return float((rotate(q, places[0]) * rotate(k, places[1])).sum())

    assert score(4903, 4900) == pytest.approx(score(3, 0), abs=1e-12)
    assert score(4903, 4900) != pytest.approx(score(4, 0), abs=1e-3)


def test_positions_given_one_by_one_are_those_of_the_row() -> None:
    rotary = Rotary(ModelConfig())
    whole, looked_up = rotary(9), rotary(9, torch.arange(9).expand(2, 9))
    torch.testing.assert_close(whole.cos.expand(2, -1, -1, -1), looked_up.cos)
    torch.testing.assert_close(whole.sin.expand(2, -1, -1, -1), looked_up.sin)


def test_tables_survive_casts_and_are_not_saved() -> None:
    rotary = Rotary(ModelConfig())
    cos = rotary.cos.clone()
    assert not rotary.state_dict()
    assert rotary.bfloat16().cos.dtype == torch.float32
    assert torch.equal(rotary.cos, cos)
    assert rotary.double().cos.dtype == torch.float64
    assert torch.equal(rotary.float().cos, cos)
    with torch.device("meta"):
        empty = Rotary(ModelConfig())
    assert torch.equal(empty.to_empty(device="cpu").cos, cos)


def test_half_precision_keeps_its_dtype() -> None:
    x = torch.randn(1, 5, 2, 64).bfloat16()
    assert rotate(x, Rotary(ModelConfig())(5)).dtype == torch.bfloat16


def test_the_stretch_leaves_short_waves_alone_and_slows_long_ones() -> None:
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
    )
    plain, stretched = (
        rotary_frequencies(128, 500000.0, None),
        rotary_frequencies(128, 500000.0, scaling),
    )
    waves = 2 * math.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    assert short.any() and long.any() and not (short | long).all()  # noqa: PT018  all three kinds occur
    assert torch.equal(stretched[short], plain[short])
    torch.testing.assert_close(stretched[long], plain[long] / 8)
    between = ~(short | long)
    assert ((stretched[between] < plain[between]) & (stretched[between] > plain[between] / 8)).all()
    assert (stretched.diff() < 0).all()


def test_the_stretch_is_that_of_transformers() -> None:
    rope = pytest.importorskip(
        "transformers.modeling_rope_utils", reason="needs the dev extra (transformers)"
    )
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=2048,
        num_attention_heads=32,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    theirs, _ = rope.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = rotary_frequencies(64, 500000.0, RopeScaling(32.0, 1.0, 4.0, 8192))
    torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=0)
