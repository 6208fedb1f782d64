"""LoRA begins as the base, switches off to the bit, merges, and trains nothing but itself.

Freezing and matching by regular expression find what is meant, and answer with near names.
"""

import math

import pytest
import torch
from torch import Tensor

from lit_pretrain.adapter import LoRA, freeze_, is_adapter_tensor
from lit_pretrain.adapter.lora import AdaptedLinear, matching
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.optim import AdamW, MuonAdamW
from lit_pretrain.roles import parameter_roles

NAMES = [
    f"blocks.{layer}.{kind}"
    for layer in range(12)
    for kind in ("attention.q_proj", "attention.out_proj", "feed_forward.up_proj")
]


def three_layers() -> Transformer:
    return Transformer(ModelConfig(vocab_size=64, n_layer=3, width=16, n_head=2, max_seq_len=16))


def test_patterns_are_searched_for_anywhere_and_names_keep_their_order() -> None:
    found = matching([r"up_proj$", r"blocks\.1\.attention\.q"], NAMES, setting="x", what="matrix")
    assert found == [
        name for name in NAMES if name.endswith("up_proj") or name == "blocks.1.attention.q_proj"
    ]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("q_porj", "blocks.*.attention.q_proj"),
        (r"feedforward\.up_proj", "blocks.*.feed_forward.up_proj"),
        ("o_proj", "blocks.*.attention.out_proj"),
    ],
)
def test_a_pattern_that_means_nothing_is_answered_with_near_names(pattern: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        matching([r"up_proj$", pattern], NAMES, setting="model.freeze", what="parameter")
    assert repr(pattern) in str(error.value)
    assert near in str(error.value)


def test_what_is_far_from_all_names_gets_the_kinds_there_are() -> None:
    with pytest.raises(
        UserError, match=r"blocks\.\*\.attention\.q_proj, blocks\.\*\.attention\.out_proj, blocks"
    ):
        matching(["xyzzy"], NAMES, setting="x", what="matrix")


def test_frozen_parameters_get_no_gradient_and_the_others_do() -> None:
    net = three_layers()
    frozen = freeze_(net, [r"^token_embedding", r"blocks\.[01]\."])
    net.logits(net(torch.arange(8)[None])).square().mean().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set(frozen)
    assert "token_embedding.weight" in frozen
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        name
        for name, _ in net.named_parameters()
        if name.startswith(("blocks.2.", "final_norm", "head"))
    }


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        freeze_(three_layers(), ["."])


NET = ModelConfig(
    vocab_size=64,
    n_layer=2,
    width=32,
    n_head=4,
    n_kv_head=2,
    ffn_width=48,
    max_seq_len=32,
    init_std=0.2,
    qkv_bias=True,
)
KINDS = {
    "lora": LoRA(rank=4),
    "gaussian": LoRA(rank=4, init="gaussian"),
    "rslora": LoRA(rank=4, rslora=True),
    "dora": LoRA(rank=4, dora=True),
    "pissa": LoRA(rank=4, init="pissa"),
    "pissa_dora": LoRA(rank=4, init="pissa", dora=True),
    "nf4": LoRA(rank=4, quantize="nf4"),
    "nf4_dora": LoRA(rank=4, quantize="nf4", dora=True),
}


def network() -> Transformer:
    torch.manual_seed(0)
    return Transformer(NET)


def tokens() -> Tensor:
    return torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))


def disturb(net: Transformer) -> None:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits(net: Transformer) -> Tensor:
    with torch.no_grad():
        return net.logits(net(tokens()))


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_the_base(kind: str) -> None:
    net = network()
    before = logits(net)
    KINDS[kind].apply(net)
    if KINDS[kind].quantize is None:
        torch.testing.assert_close(logits(net), before, atol=2e-5, rtol=1e-5)
    else:
        difference = (logits(net) - before).norm() / before.norm()
        assert 1e-3 < difference < 0.5  # four bits are not nothing
    disturb(net)
    assert (logits(net) - before).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_base_to_the_bit(kind: str) -> None:
    adapter, net = KINDS[kind], network()
    before = logits(net)
    adapter.apply(net)
    disturb(net)
    after = logits(net)
    with adapter.disabled(net):
        off = logits(net)
        with adapter.disabled(net):
            assert torch.equal(logits(net), off)
        assert torch.equal(logits(net), off)
    assert torch.equal(logits(net), after)
    if adapter.quantize is None:
        assert torch.equal(off, before)
    with pytest.raises(ZeroDivisionError), adapter.disabled(net):
        raise ZeroDivisionError
    assert torch.equal(logits(net), after)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_is_one_network_of_the_old_names(kind: str) -> None:
    adapter, net = KINDS[kind], network()
    names = list(net.state_dict())
    adapter.apply(net)
    disturb(net)
    before = logits(net)
    adapter.merge(net)
    assert list(net.state_dict()) == names
    assert not any(isinstance(module, AdaptedLinear) for module in net.modules())
    torch.testing.assert_close(logits(net), before, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_base_keys_stay_and_only_the_adapter_is_trained(kind: str) -> None:
    adapter, net = KINDS[kind], network()
    before = set(net.state_dict())
    names = adapter.apply(net)
    assert len(names) == 14
    new = set(net.state_dict()) - before
    assert new
    assert all(is_adapter_tensor(key) for key in new)
    assert not any(is_adapter_tensor(key) for key in before)
    assert "blocks.0.attention.q_proj.lora_A" in new
    if adapter.quantize is None:
        assert before <= set(net.state_dict())
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {key for key in new if not key.endswith(("A0", "B0"))}
    net.logits(net(tokens())).square().mean().backward()
    assert {
        name for name, parameter in net.named_parameters() if parameter.grad is not None
    } == trained


@pytest.mark.parametrize(
    ("adapter", "scale"),
    [
        (LoRA(rank=4, alpha=8), 2.0),
        (LoRA(rank=16, alpha=8), 0.5),
        (LoRA(rank=16, alpha=8, rslora=True), 2.0),
    ],
)
def test_scale(adapter: LoRA, scale: float) -> None:
    assert adapter.scale == scale


def test_first_values() -> None:
    net = network()
    LoRA(rank=8).apply(net, torch.Generator().manual_seed(0))
    A = torch.cat(
        [
            m.lora_A.detach().flatten()
            for m in net.modules()
            if isinstance(m, AdaptedLinear) and m.in_features == 32
        ]
    )
    assert A.abs().max() <= 1 / math.sqrt(32)
    assert A.std() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.05)
    assert all(not m.lora_B.any() for m in net.modules() if isinstance(m, AdaptedLinear))
    again = network()
    LoRA(rank=8).apply(again, torch.Generator().manual_seed(0))
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items()
    )
    gaussian = network()
    LoRA(rank=8, init="gaussian").apply(gaussian)
    A = torch.cat(
        [m.lora_A.detach().flatten() for m in gaussian.modules() if isinstance(m, AdaptedLinear)]
    )
    assert A.std() == pytest.approx(1 / 8, rel=0.05)


def test_pissa_holds_the_leading_singular_directions() -> None:
    net = network()
    weight = net.get_submodule("blocks.0.feed_forward.down_proj").weight.detach().clone()
    adapter = LoRA(rank=4, init="pissa")
    adapter.apply(net)
    module = net.get_submodule("blocks.0.feed_forward.down_proj")
    rest = weight - adapter.scale * (module.lora_B @ module.lora_A).detach()
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(
        torch.linalg.svdvals(rest)[: len(values) - 4], values[4:], atol=1e-5, rtol=1e-4
    )


def test_the_norm_of_dora_is_a_constant_to_the_gradient() -> None:
    """Against the plain formula in fp64, differentiated with the norm held and not held."""
    torch.manual_seed(3)
    module = AdaptedLinear(
        torch.nn.Linear(12, 7).double(), rank=2, scale=1.5, dropout=0.0, dora=True
    )
    with torch.no_grad():
        for parameter in (module.lora_A, module.lora_B, module.lora_magnitude):
            assert parameter is not None
            parameter.copy_(torch.randn_like(parameter) + 0.5)
    x, upstream = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    gradients = []
    for held in (True, False):
        W = module.weight.detach() + 1.5 * module.lora_B @ module.lora_A
        norm = W.norm(dim=1)
        gain = module.lora_magnitude / (norm.detach() if held else norm)
        y = x @ (gain[:, None] * W).T + module.bias.detach()
        gradients.append(
            torch.autograd.grad(
                (y * upstream).sum(), (module.lora_A, module.lora_B, module.lora_magnitude)
            )
        )
    own = torch.autograd.grad(
        (module(x) * upstream).sum(), (module.lora_A, module.lora_B, module.lora_magnitude)
    )
    for ours, held, _ in zip(own, *gradients, strict=True):
        torch.testing.assert_close(ours, held, atol=1e-5, rtol=1e-5)
    assert (gradients[0][0] - gradients[1][0]).norm() > 0.1 * gradients[0][0].norm()


def test_dropout_is_of_the_update_alone_and_follows_the_seed() -> None:
    for dora in (False, True):
        net = network()
        adapter = LoRA(rank=4, dropout=0.5, dora=dora)
        adapter.apply(net)
        net.train()
        torch.testing.assert_close(
            logits(net), logits(network()), atol=2e-5, rtol=1e-5
        )  # an update of zero has nothing to drop
        disturb(net)
        torch.manual_seed(5)
        first = logits(net)
        second = logits(net)
        torch.manual_seed(5)
        assert torch.equal(logits(net), first)
        assert not torch.equal(first, second)
        assert torch.equal(logits(net.eval()), logits(net))


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_of_one_matrix_is_what_the_formula_says(dora: bool) -> None:
    torch.manual_seed(0)
    module = AdaptedLinear(torch.nn.Linear(12, 7), rank=2, scale=1.5, dropout=0.4, dora=dora)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_adapter_tensor(name):
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    x = torch.randn(3, 12)
    torch.manual_seed(9)
    out = module(x)
    torch.manual_seed(9)
    dropped = torch.nn.functional.dropout(x, 0.4)
    W, BA = module.weight, 1.5 * module.lora_B @ module.lora_A
    gain = module.lora_magnitude / (W + BA).norm(dim=1) if dora else torch.ones(7)
    expected = x @ W.T + module.bias + (gain - 1) * (dropped @ W.T) + gain * (dropped @ BA.T)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("kind", ["lora", "dora", "nf4", "nf4_dora", "pissa"])
def test_under_autocast_it_computes_in_bf16_and_keeps_its_weights(kind: str) -> None:
    net = network()
    KINDS[kind].apply(net)
    disturb(net)
    exact = logits(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(tokens())
        net.logits(out).float().mean().backward()
        rounded = logits(net).float()
    assert all(
        p.dtype == torch.float32 and (p.grad is None or p.grad.dtype == torch.float32)
        for p in net.parameters()
    )
    assert 1e-5 < (rounded - exact).norm() / exact.norm() < 0.1


def test_optimizers_know_the_parameters_of_an_adapter() -> None:
    net = network()
    LoRA(rank=4, dora=True).apply(net)
    roles = parameter_roles(net)
    assert {roles[name] for name, p in net.named_parameters() if p.requires_grad} == {
        "adapter",
        "vector",
    }
    for recipe in (AdamW(lr=1e-3, weight_decay=0.1), MuonAdamW(adapter_lr=1e-3, vector_lr=1e-3)):
        groups = {
            group["role"]: group
            for group in recipe.build(net.named_parameters(), roles).param_groups
        }
        assert set(groups) == {"adapter", "vector"}
        assert len(groups["adapter"]["params"]) == 28
        assert groups["adapter"]["lr"] == 1e-3
        assert groups["adapter"].get("algorithm", "adamw") == "adamw"
        assert groups["vector"]["weight_decay"] == 0.0
    assert {
        g["role"]: g["weight_decay"]
        for g in AdamW(weight_decay=0.1).build(net.named_parameters(), roles).param_groups
    }["adapter"] == 0.1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("q_prj$",)}, r"q_proj"),
        ({"targets": ("(",)}, "not a regular expression"),
        ({"targets": ("head",)}, "the head"),
        ({"rank": 40, "init": "pissa"}, "singular directions"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LoRA(**settings).apply(network())


def test_two_adapters_are_one_too_many() -> None:
    net = network()
    LoRA().apply(net)
    with pytest.raises(UserError, match="merge it first"):
        LoRA().apply(net)
