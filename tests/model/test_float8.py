"""Products in fp8: what is converted, that names stay, and numbers against a plain quantiser."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchao", reason="needs the fp8 extra")

from lit_pretrain.errors import UserError
from lit_pretrain.model import Block
from lit_pretrain.model.config import Checkpointing, Float8Recipe, ModelConfig
from lit_pretrain.model.float8 import Float8Projection, use_float8_
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.roles import parameter_roles

NET = ModelConfig(
    vocab_size=97, n_layer=2, width=64, n_head=4, n_kv_head=2, max_seq_len=32, qkv_bias=True,
    value_embeddings="alternate", value_gate_channels=32,
)  # fmt: skip


class Routed(Block):
    """A block with a router and a further matrix of multiples of 16."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.router = nn.Linear(config.width, 16, bias=False)
        self.extra = nn.Linear(config.width, config.width, bias=False)


def made(recipe: Float8Recipe | None = None, config: ModelConfig = NET) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(config)
    if recipe is not None:
        use_float8_(net, recipe)
    return net


def converted(net: Transformer) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, Float8Projection)}


def test_projections_are_converted_and_nothing_else() -> None:
    plain, net = made(), made()
    line = use_float8_(net, "tensorwise")
    kinds = {name.rpartition(".")[2] for name in converted(net)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "out_proj", "gate_proj", "up_proj", "down_proj"}
    assert "14 of 15 matrices" in line
    assert "not in value_gate (32 × 2, not a projection" in line
    assert parameter_roles(net) == parameter_roles(plain)
    for (name, ours), (same, theirs) in zip(
        net.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert name == same
        assert torch.equal(ours, theirs)


def test_odd_sizes_and_parts_of_a_user_s_block_stay_as_they_are() -> None:
    config = ModelConfig(vocab_size=64, n_layer=1, width=64, n_head=4, n_kv_head=1, head_dim=24)
    net = made(config=config)
    line = use_float8_(net, "rowwise")  # 4 heads of 24 are 96, one is 24
    assert {name.rpartition(".")[2] for name in converted(net)} == {
        "q_proj", "out_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert "k_proj (64 × 24, not multiples of 16)" in line
    net = made(config=dataclasses.replace(NET, block=f"{__name__}.Routed"))
    if not isinstance(net.blocks[0], Routed):
        pytest.fail("the block was not taken")
    line = use_float8_(net, "tensorwise")
    assert not any(name.endswith(("router", "extra")) for name in converted(net))
    assert "router (64 × 16, not a projection" in line


def test_nothing_to_convert_is_refused() -> None:
    net = made(config=ModelConfig(vocab_size=64, n_layer=1, width=24, n_head=2, ffn_width=40))
    with pytest.raises(UserError, match=r"model\.float8=tensorwise finds no matrix.*ffn_width"):
        use_float8_(net, "tensorwise")


def rounded(x: Tensor, recipe: str) -> Tensor:
    """Round to e4m3 and back, with one factor for the tensor or for each row."""
    largest = x.abs().amax() if recipe == "tensorwise" else x.abs().amax(-1, keepdim=True)
    scale = torch.finfo(torch.float8_e4m3fn).max / largest
    if recipe != "tensorwise":
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return (x * scale).to(torch.float8_e4m3fn).float() / scale


@pytest.mark.parametrize("tokens", [32, 30])
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_products_are_those_of_a_plain_quantiser(recipe: Float8Recipe, tokens: int) -> None:
    """Forward; the gradients are those of the plain layer to the rounding of eight bits."""
    layer = made(recipe).blocks[0].feed_forward.up_proj
    assert isinstance(layer, Float8Projection)
    x = torch.randn(1, tokens, NET.width, requires_grad=True)
    found = layer(x)
    plain = x.detach() @ layer.weight.detach().T
    expected = rounded(x.detach(), recipe) @ rounded(layer.weight.detach(), recipe).T
    assert found.shape == plain.shape
    assert apart(found, expected) < 5e-3  # rowwise products are rounded to bf16
    assert 0.01 < apart(found, plain) < 0.06
    up = torch.randn_like(plain)
    found.backward(up)
    assert x.grad is not None
    assert apart(x.grad, up @ layer.weight.detach()) < 0.12
    assert apart(layer.weight.grad, up[0].T @ x.detach()[0]) < 0.12
    with torch.no_grad():
        assert torch.equal(layer(x), plain)


def apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("on", [True, "products", 0.5])
def test_checkpointing_changes_no_gradient(on: Checkpointing) -> None:
    def gradients(checkpointing: Checkpointing) -> list[Tensor]:
        net = made("tensorwise")
        net.checkpoint_activations(checkpointing)
        tokens_BT = torch.arange(64).view(2, 32)
        with torch.autocast("cpu"):
            net(tokens_BT).float().square().mean().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    for ours, plain in zip(gradients(on), gradients(False), strict=True):
        assert torch.equal(ours, plain)


def test_no_copies_of_weights_are_kept() -> None:
    """Which a plan counts for autocast, and not for fp8."""

    def kept(recipe: Float8Recipe | None) -> int:
        net, sizes = made(recipe), dict[int, int]()
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_BTD = net(torch.arange(16)[None])
        assert hidden_BTD.requires_grad
        return sum(sizes.values())

    copies = 2 * sum(p.numel() for n, p in made().named_parameters() if n.endswith("proj.weight"))
    assert kept(None) - kept("tensorwise") == pytest.approx(copies, rel=0.1)
