"""The rules of a transfer, against the shapes of networks built at both sizes, and against networks
with the factors where the literature has them: in front of the matrices.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.parameter_scales import parameter_scales, transferred_shape
from lit_pretrain.model.transformer import Block, Transformer
from lit_pretrain.optim import AdamW, MuonAdamW, OptimizerRecipe
from lit_pretrain.optim.transferred_groups import transfer_groups_
from lit_pretrain.roles import parameter_roles
from lit_pretrain.stage.coordinate_check import resized
from lit_pretrain.transfer import ParameterScale, StepFactors, Transfer

BASE = ModelConfig(vocab_size=128, n_layer=2, width=64, n_head=4, max_seq_len=32, init_std=0.1)
EVERYTHING = {
    "value_embeddings": "alternate", "residual_scalars": True, "qk_norm": True, "qkv_bias": True,
    "attn_out_bias": True, "ffn_bias": True, "norm": "layernorm", "norm_bias": True,
    "embed_norm": True, "position": "learned",
}  # fmt: skip
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "plain": ({}, {}),
    "everything": (EVERYTHING, {}),
    "tied": ({"tie_embeddings": True}, {}),
    "groups of heads": ({"n_kv_head": 2, **EVERYTHING}, {}),
    "as many key heads": ({"n_kv_head": 2, **EVERYTHING}, {"base_n_kv_head": 2}),
    "larger heads": ({"value_embeddings": "alternate"}, {"base_head_dim": 16}),
    "larger heads with norms": ({"qk_norm": True}, {"base_head_dim": 16}),
    "larger heads, as many": ({"n_kv_head": 2}, {"base_head_dim": 16, "base_n_kv_head": 2}),
}
"""Changes of the base, and what its transfer says beside width and depth."""


def variant(name: str) -> tuple[ModelConfig, Transfer]:
    changes, own = VARIANTS[name]
    return replace(BASE, **changes), Transfer(base_width=64, base_depth=2, **own)


def scales_of(config: ModelConfig, transfer: Transfer) -> dict[str, ParameterScale]:
    with torch.device("meta"):
        return parameter_scales(config, transfer, parameter_roles(Transformer(config)))


@pytest.mark.parametrize("name", VARIANTS)
def test_ratios_of_channels_are_those_of_networks_that_are_built(name: str) -> None:
    base, transfer = variant(name)
    large = resized(base, transfer, 128, 4)
    with torch.device("meta"):
        shapes = {key: p.shape for key, p in Transformer(base).named_parameters()}
        net = Transformer(large)
    roles, scales = parameter_roles(net), scales_of(large, transfer)
    assert scales.keys() == roles.keys()
    for key, parameter in net.named_parameters():
        # The large network has more blocks: those of the base have the same shapes.
        twin = shapes.get(key, shapes.get(key.replace("blocks.3", "blocks.1")))
        if roles[key] in ("matrix", "head") and twin is not None:
            ratios = [now / before for now, before in zip(parameter.shape, twin, strict=True)]
            assert scales[key].fan_in == ratios[1], key
            assert roles[key] == "head" or scales[key].fan_out == ratios[0], key


@pytest.mark.parametrize("name", VARIANTS)
def test_at_the_base_every_factor_is_one(name: str) -> None:
    base, transfer = variant(name)
    assert transferred_shape(base, transfer) == base
    for key, scale in scales_of(base, transfer).items():
        assert scale == ParameterScale(kind=scale.kind), key


@pytest.mark.parametrize("depth", [2, 6, 16])
def test_the_terms_of_the_embedding_add_up_to_the_same_at_any_depth(depth: int) -> None:
    config = replace(BASE, residual_scalars=True, n_layer=depth)
    net = Transformer(config)
    net.reset_parameters(torch.Generator().manual_seed(0), Transfer(64, 2))
    assert net.embedding_scale_L is not None
    assert net.residual_scale_L is not None
    assert net.embedding_scale_L.detach().sum().item() == pytest.approx(0.2)
    assert (net.residual_scale_L == 1).all()


@pytest.mark.parametrize("depth", [2, 6, 16])
def test_first_values_that_are_given_add_up_and_multiply_to_the_same_at_any_depth(
    depth: int,
) -> None:
    config = replace(
        BASE, residual_scalars=True, residual_scale_init=(1.2, 1.0),
        embedding_scale_init=(0.2, 0.1), n_layer=depth,
    )  # fmt: skip
    net = Transformer(config)
    net.reset_parameters(torch.Generator().manual_seed(0), Transfer(64, 2))
    assert net.embedding_scale_L is not None
    assert net.residual_scale_L is not None
    assert net.embedding_scale_L.detach().sum().item() == pytest.approx(0.3)
    ends = net.residual_scale_L.detach()[[0, -1]].tolist()
    assert ends == pytest.approx([1.2 ** (2 / depth), 1.0])


@pytest.mark.parametrize("init", ["normal", "gpt2", "zero_residual"])
def test_first_weights(init: Any) -> None:
    """What a matrix puts out is as large at any width, and what all branches add at any depth."""
    config = ModelConfig(
        vocab_size=2048, width=256, n_head=4, n_layer=8, init=init, activation="relu2",
        value_embeddings="alternate",
    )  # fmt: skip
    nets = []
    for shape in (resized(config, None, 64, 2), config):
        with torch.device("meta"):
            net = Transformer(shape)
        net.to_empty(device="cpu")
        net.reset_parameters(torch.Generator().manual_seed(0), Transfer(64, 2))
        nets.append({key: float(p.detach().std()) for key, p in net.named_parameters()})
    small, large = nets
    for key in ("token_embedding.weight", "value_embeddings.1.weight"):
        assert large[key] == pytest.approx(small[key], rel=0.05)
    assert large["head.weight"] == pytest.approx(small["head.weight"] / 4, rel=0.05)
    for part in ("attention.q_proj", "attention.v_proj", "feed_forward.up_proj"):
        key = f"blocks.1.{part}.weight"
        assert large[key] == pytest.approx(small[key] / 2, rel=0.05)
    for part in ("attention.out_proj", "feed_forward.down_proj"):
        key = f"blocks.1.{part}.weight"
        assert large[key] == pytest.approx(small[key] / (2 * 4), rel=0.05)


def losses(net: Transformer, optimizer: torch.optim.Optimizer) -> list[float]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(4):
        tokens_BT = torch.randint(128, (4, 17), generator=draw)
        optimizer.zero_grad(set_to_none=True)
        logits = net.logits(net(tokens_BT[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def scaled_output(module: nn.Module, factor: float) -> None:
    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * factor

    module.register_forward_hook(scale)


@pytest.mark.parametrize(
    "recipe",
    [
        AdamW(lr=0.01, eps=1e-3, weight_decay=0.5),
        MuonAdamW(
            matrix_lr=0.02, embedding_lr=0.01, weight_decay=0.5, eps=1e-12, adamw_weight_decay=0.3
        ),
    ],
    ids=["adamw", "muon"],
)
def test_folded_factors_train_the_network_that_has_them_in_front(recipe: OptimizerRecipe) -> None:
    transfer = Transfer(64, 2, base_head_dim=16)
    m, depth, query = 2.0, 4.0, 0.5**0.5
    config = resized(
        replace(BASE, attn_out_bias=True, ffn_bias=True, qkv_bias=True), transfer, 128, 8
    )
    folded, plain = Transformer(config), Transformer(config)
    folded.reset_parameters(torch.Generator().manual_seed(0), transfer)
    roles, named = parameter_roles(folded), list(folded.named_parameters())
    optimizer = recipe.build(named, roles)
    scales = parameter_scales(config, transfer, roles)
    transfer_groups_(optimizer, recipe, named, scales, StepFactors())

    # The same function, with the factors of Yang et al. and Dey et al. in front of the matrices.
    fronts: dict[str, float] = {"head.weight": 1 / m}
    scaled_output(plain.final_norm, 1 / m)
    for number, block in enumerate(plain.blocks):
        assert isinstance(block, Block)
        for owner, module, factor in (
            ("attention.out_proj", block.attention, 1 / depth),
            ("feed_forward.down_proj", block.feed_forward, 1 / depth),
            ("attention.q_proj", block.attention.q_proj, query),
        ):
            scaled_output(module, factor)
            for kind in ("weight", "bias"):
                fronts[f"blocks.{number}.{owner}.{kind}"] = factor
    with torch.no_grad():
        for (key, parameter), source in zip(
            plain.named_parameters(), folded.parameters(), strict=True
        ):
            parameter.copy_(source / fronts.get(key, 1.0))
    if isinstance(recipe, MuonAdamW):
        # Muon's own scale keeps the steps of matrices of the same proportions.
        other = recipe.build(list(plain.named_parameters()), roles)
    else:
        assert isinstance(recipe, AdamW)
        groups = []
        for key, parameter in plain.named_parameters():
            hidden = roles[key] == "matrix"
            shrinks = m * depth if key.startswith("blocks.") else m
            groups.append(
                {
                    "params": [parameter],
                    "lr": recipe.lr / (m if hidden else 1),
                    "eps": recipe.eps / shrinks,
                    "weight_decay": 0.0
                    if roles[key] == "vector"
                    else recipe.weight_decay * (m if hidden else 1),
                }
            )
        other = torch.optim.AdamW(groups, betas=recipe.betas)
    expected, found = losses(plain, other), losses(folded, optimizer)
    assert found == pytest.approx(expected, rel=2e-5)
    assert len(set(found)) == 4


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "recipe",
    [AdamW(weight_decay=0.1), MuonAdamW(weight_decay=0.1, adamw_weight_decay=0.1)],
    ids=["adamw", "muon"],
)
def test_a_step_decays_by_the_same_share_at_any_size(name: str, recipe: OptimizerRecipe) -> None:
    base, transfer = variant(name)

    def shares(config: ModelConfig, step: StepFactors) -> dict[str, float]:
        with torch.device("meta"):
            net = Transformer(config)
        named, roles = list(net.named_parameters()), parameter_roles(net)
        optimizer = recipe.build(named, roles)
        scales = parameter_scales(config, transfer, roles)
        transfer_groups_(optimizer, recipe, named, scales, step)
        names = {id(parameter): key for key, parameter in named}
        return {
            names[id(parameter)]: group["lr"] * group["weight_decay"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    large = resized(base, transfer, 256, 8)
    at_base, found = shares(base, StepFactors()), shares(large, StepFactors())
    for key in at_base:
        twin = key.replace("blocks.1", "blocks.7").replace("embeddings.1", "embeddings.7")
        assert found[twin] == pytest.approx(at_base[key]), key
    longer = shares(large, StepFactors(rate=0.3, decay=0.125))
    assert longer == pytest.approx({key: share / 8 for key, share in found.items()})
    assert any(found.values())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("recipe", [AdamW(), MuonAdamW()], ids=["adamw", "muon"])
def test_groups_of_one_name_have_one_rate(name: str, recipe: OptimizerRecipe) -> None:
    base, transfer = variant(name)
    large = resized(base, transfer, 128, 8)
    for config in (base, large):
        with torch.device("meta"):
            net = Transformer(config)
        named, roles = list(net.named_parameters()), parameter_roles(net)
        optimizer = recipe.build(named, roles)
        transfer_groups_(
            optimizer, recipe, named, parameter_scales(config, transfer, roles), StepFactors()
        )
        rates: dict[str, set[float]] = {}
        for group in optimizer.param_groups:
            rates.setdefault(group["name"], set()).add(group["lr"])
        assert all(len(each) == 1 for each in rates.values()), rates
        # The scalars of the embedding are among the others.
        assert rates.keys() == set(roles.values()) - {"embedding_scalar"} or config is large


class Undecayed(torch.optim.SGD):
    """An optimizer of the user's, which knows no weight decay."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            del group["weight_decay"]


class UndecayedRecipe(OptimizerRecipe):
    """A recipe of the user's that has rules for a transfer."""

    def build(self, named_parameters: Any, roles: Any) -> torch.optim.Optimizer:
        by_role: dict[str, list[nn.Parameter]] = {}
        for key, parameter in named_parameters:
            by_role.setdefault(roles[key], []).append(parameter)
        groups = [{"role": role, "params": params} for role, params in by_role.items()]
        return Undecayed(groups, lr=0.1)

    def transferred_rate(self, role: Any, scale: ParameterScale, shape: Any) -> float:
        return scale.rate


def test_an_optimizer_of_your_own_need_not_decay() -> None:
    base, transfer = variant("plain")
    large = resized(base, transfer, 128, 4)
    with torch.device("meta"):
        net = Transformer(large)
    named, roles, recipe = list(net.named_parameters()), parameter_roles(net), UndecayedRecipe()
    optimizer = recipe.build(named, roles)
    transfer_groups_(
        optimizer, recipe, named, parameter_scales(large, transfer, roles), StepFactors(rate=3.0)
    )
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["head"] == pytest.approx(0.1 * 3 / 2)
    assert not any("weight_decay" in group for group in optimizer.param_groups)


def test_rates_by_kind() -> None:
    """The table of the guide, in numbers: m = 2, l = 4."""
    transfer = Transfer(64, 2, base_n_kv_head=2)
    config = replace(BASE, **EVERYTHING, n_kv_head=2)
    large = resized(config, transfer, 128, 8)
    with torch.device("meta"):
        net = Transformer(large)
    named, roles = list(net.named_parameters()), parameter_roles(net)

    def factors(recipe: OptimizerRecipe) -> dict[str, float]:
        optimizer = recipe.build(named, roles)
        before = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        scales = parameter_scales(large, transfer, roles)
        transfer_groups_(optimizer, recipe, named, scales, StepFactors())
        after = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        return {key: after[id(p)] / before[id(p)] for key, p in named}

    adam, muon = factors(AdamW()), factors(MuonAdamW())
    for key, expected_adam, expected_muon in (
        ("token_embedding.weight", 1, 1),
        ("position_embedding.weight", 1, 1),
        ("value_embeddings.7.weight", 1, 1),
        ("head.weight", 1 / 2, 1 / 2),
        ("embedding_scale_L", 1 / 4, 1 / 4),
        ("residual_scale_L", 1 / 4, 1 / 4),
        ("blocks.7.attention_norm.weight", 1, 1),
        ("blocks.7.attention.q_norm.weight", 1, 1),
        ("blocks.7.attention.q_proj.weight", 1 / 2, 1),
        ("blocks.7.attention.q_proj.bias", 1, 1),
        # As many keys and values from twice as many channels: Muon's wide matrices.
        ("blocks.7.attention.k_proj.weight", 1 / 2, 0.5**0.5),
        ("blocks.7.attention.v_proj.weight", 1 / 2, 0.5**0.5),
        # Reads 32 channels at any width, and writes as many gates.
        ("blocks.7.attention.value_gate.weight", 1, 1),
        ("blocks.7.attention.out_proj.weight", 1 / 8, 1 / 4),
        ("blocks.7.attention.out_proj.bias", 1 / 4, 1 / 4),
        ("blocks.7.feed_forward.up_proj.weight", 1 / 2, 1),
        ("blocks.7.feed_forward.down_proj.weight", 1 / 8, 1 / 4),
    ):
        assert adam[key] == pytest.approx(expected_adam), key
        assert muon[key] == pytest.approx(expected_muon), key
    matched = factors(MuonAdamW(lr_scaling="match_rms_adamw"))
    assert matched["blocks.7.attention.q_proj.weight"] == pytest.approx(0.5**0.5)
