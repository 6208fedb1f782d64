"""What stages cost, against torch's counter of FLOPs on the meta device."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.scaling.flops import flops_per_token, lora_parameters, stage_cost

CONFIG = ModelConfig(n_kv_head=2)


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


def test_the_others() -> None:
    training = flops_per_token(CONFIG, 512).training
    assert (
        stage_cost(CONFIG, 512, "pretrain").flops_per_token
        == stage_cost(CONFIG, 512, "sft").flops_per_token
        == training
    )
    dpo = stage_cost(CONFIG, 512, "dpo")
    assert (dpo.flops_per_token, dpo.reference) == (training * 4 / 3, True)
