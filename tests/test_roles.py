"""Roles: modules declare what their parameters are, and optimizers and initialisation obey."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.optim import AdamW, MuonAdamW
from lit_pretrain.roles import Role, parameter_roles


class Experts(nn.Module):
    """Two stacks of expert matrices (E, out, in), a router and a short convolution."""

    roles: ClassVar[dict[str, Role]] = {
        "up_Efd": "matrix",
        "down_Edf": "matrix",
        "router": "head",
        "conv.weight": "vector",
    }

    def __init__(self, width: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.up_Efd = nn.Parameter(torch.randn(experts, hidden, width))
        self.down_Edf = nn.Parameter(torch.randn(experts, width, hidden))
        self.router = nn.Linear(width, experts)
        self.conv = nn.Conv1d(width, width, 4, groups=width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Weigh the experts' answers by the router."""
        x_BDT = self.conv(x_BTD.mT)[..., : x_BTD.shape[1]]
        x_BTD = x_BTD[:, : x_BDT.shape[-1]] + x_BDT.mT
        weight_BTE = self.router(x_BTD).softmax(-1)
        hidden = torch.einsum("btd,efd->btef", x_BTD, self.up_Efd).relu()
        return torch.einsum("btef,edf,bte->btd", hidden, self.down_Edf, weight_BTE)


def test_a_stack_of_matrices_is_a_matrix() -> None:
    assert parameter_roles(Experts()) == {
        "up_Efd": "matrix",
        "down_Edf": "matrix",
        "router.weight": "head",
        "router.bias": "head",
        "conv.weight": "vector",
        "conv.bias": "vector",
    }


def test_muon_steps_each_expert_as_a_matrix_of_its_own() -> None:
    """Tall, wide and square stacks move exactly as their matrices do one by one."""
    torch.manual_seed(0)
    stacks = [nn.Parameter(torch.randn(4, *shape)) for shape in ((48, 32), (32, 48), (32, 32))]
    singles = [[nn.Parameter(matrix.clone()) for matrix in stack.data] for stack in stacks]
    recipe = MuonAdamW(weight_decay=0.1, cautious=True)
    whole = recipe.build(
        ((str(i), p) for i, p in enumerate(stacks)), {str(i): "matrix" for i in range(3)}
    )
    apart_named = {f"{i}.{j}": p for i, row in enumerate(singles) for j, p in enumerate(row)}
    apart = recipe.build(apart_named.items(), dict.fromkeys(apart_named, "matrix"))
    before = [stack.detach().clone() for stack in stacks]
    for _ in range(2):
        for stack, row in zip(stacks, singles, strict=True):
            stack.grad = torch.randn_like(stack)
            for j, matrix in enumerate(row):
                matrix.grad = stack.grad[j].clone()
        whole.step()
        apart.step()
    for stack, row, start in zip(stacks, singles, before, strict=True):
        assert torch.equal(stack, torch.stack(list(row)))
        assert not torch.equal(stack, start)


def test_optimizers_take_a_module_of_experts() -> None:
    net = Experts()
    net(torch.randn(2, 8, 16)).square().mean().backward()
    for recipe in (AdamW(), MuonAdamW()):
        optimizer = recipe.build(net.named_parameters(), parameter_roles(net))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer.step()
        assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())
        sizes = {g["role"]: [p.ndim for p in g["params"]] for g in optimizer.param_groups}
        assert sizes == {"matrix": [3, 3], "head": [2, 1], "vector": [3, 1]}


@pytest.mark.parametrize("init", ["normal", "gpt2", "zero_residual"])
def test_a_stack_of_matrices_gets_the_first_weights_of_matrices(init: str) -> None:
    """With roles by the number of axes it was a vector, which starts at zero."""
    with torch.device("meta"):
        net = Transformer(ModelConfig(n_layer=1, width=16, n_head=2, vocab_size=32, init=init))
        net.blocks[0].feed_forward = Experts()
    net.to_empty(device="cpu")
    net.reset_parameters(torch.Generator().manual_seed(0))
    assert parameter_roles(net)["blocks.0.feed_forward.up_Efd"] == "matrix"
    up = net.blocks[0].feed_forward.up_Efd
    expected = 16**-0.5 if init == "zero_residual" else net.config.init_std
    assert up.std().item() == pytest.approx(expected, rel=0.1)


def test_the_outermost_declaration_decides() -> None:
    class Tower(nn.Module):
        roles: ClassVar[dict[str, Role]] = {"parts.0": "adapter", "parts.1.up_Efd": "scalar"}

        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Experts(), Experts()])

    roles = parameter_roles(Tower())
    assert {role for name, role in roles.items() if name.startswith("parts.0")} == {"adapter"}
    assert roles["parts.1.up_Efd"] == "scalar"
    assert roles["parts.1.down_Edf"] == "matrix"


def test_torchs_own_layers_need_no_declaration() -> None:
    net = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    assert parameter_roles(net) == {
        "0.weight": "embedding",
        "1.weight": "matrix",
        "1.bias": "vector",
        "2.weight": "vector",
        "2.bias": "vector",
    }


def test_what_nobody_declares_is_asked_for() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.zeros(2, 3, 4))

    with pytest.raises(UserError, match=r"'0\.stack' of shape \(2, 3, 4\) has no role.*Silent"):
        parameter_roles(nn.Sequential(Silent()))
