"""Optimizers: parameters by role, what decays, AdamW in closed form, and classes of torch's."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from lit_pretrain.errors import UserError
from lit_pretrain.optim import AdamW, MuonAdamW, OptimizerRecipe, TorchOptimizer, decays
from lit_pretrain.optim.optimizer import split_by_role
from lit_pretrain.roles import ROLES


def parameters() -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (7, 4), "block": (4, 4), "gain": (4,), "gate": (), "head": (7, 4)}
    roles = {
        "embed": "embedding",
        "block": "matrix",
        "gain": "vector",
        "gate": "scalar",
        "head": "head",
    }
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }, roles


def test_groups_cover_every_parameter_once() -> None:
    named, roles = parameters()
    tied = [*named.items(), ("head.again", named["head"])]
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    groups = split_by_role(
        [*tied, ("frozen", frozen)], roles
    )  # the tied name and the frozen one need no role
    assert [id(p) for group in groups.values() for p in group] == [
        id(named[n]) for n in ("block", "embed", "head", "gain", "gate")
    ]
    assert list(groups) == ["matrix", "embedding", "head", "vector", "scalar"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": None}, "'block' has no role"),
        ({"block": "matrices"}, "unknown role 'matrices'"),
        ({"gain": "matrix"}, "needs two dimensions"),
    ],
)
def test_roles_that_cannot_be(change: dict[str, str | None], message: str) -> None:
    named, roles = parameters()
    given = {name: role for name, role in {**roles, **change}.items() if role is not None}
    with pytest.raises(UserError, match=message):
        split_by_role(named.items(), given)


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        split_by_role([("a", nn.Parameter(torch.ones(1), requires_grad=False))], {"a": "vector"})


def scalars() -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    named = {name: nn.Parameter(torch.ones(3)) for name in ("stream", "embedding", "temperature")}
    return named, {"stream": "scalar", "embedding": "embedding_scalar", "temperature": "scalar"}


@pytest.mark.parametrize(
    ("recipe", "groups"),
    [
        (AdamW(), {"scalar": ["stream", "embedding", "temperature"]}),
        (MuonAdamW(), {"scalar": ["stream", "embedding", "temperature"]}),
        (TorchOptimizer(torch.optim.Adam), {"scalar": ["stream", "embedding", "temperature"]}),
        (
            AdamW(lr_scale={"embedding_scalar": 2.0}),
            {"scalar": ["stream", "temperature"], "embedding_scalar": ["embedding"]},
        ),
        (
            MuonAdamW(role_betas={"embedding_scalar": (0.96, 0.95)}),
            {"scalar": ["stream", "temperature"], "embedding_scalar": ["embedding"]},
        ),
        (
            AdamW(role_betas={"embedding_scalar": (0.96, 0.95)}),
            {"scalar": ["stream", "temperature"], "embedding_scalar": ["embedding"]},
        ),
        (
            MuonAdamW(embedding_scalar_lr=0.5),
            {"scalar": ["stream", "temperature"], "embedding_scalar": ["embedding"]},
        ),
    ],
)
def test_scalars_of_embeddings_are_scalars_unless_they_have_a_rate(
    recipe: OptimizerRecipe, groups: dict[str, list[str]]
) -> None:
    named, roles = scalars()
    names = {id(parameter): name for name, parameter in named.items()}
    found = recipe.build(named.items(), roles).param_groups
    assert {g["role"]: [names[id(p)] for p in g["params"]] for g in found} == groups


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        (AdamW(lr=0.1, lr_scale={"embedding_scalar": 5.0, "scalar": 0.1}), (0.01, 0.5)),
        (MuonAdamW(scalar_lr=0.01, embedding_scalar_lr=0.5), (0.01, 0.5)),
    ],
)
def test_each_kind_of_scalar_steps_at_its_rate(
    recipe: OptimizerRecipe, rates: tuple[float, float]
) -> None:
    """A first step of Adam is as large as its rate, whatever the gradient, and nothing decays."""
    named, roles = scalars()
    optimizer = recipe.build(named.items(), roles)
    for parameter in named.values():
        parameter.grad = torch.tensor([1e-3, -2.0, 5.0])
    optimizer.step()
    for name, parameter in named.items():
        rate = rates[1] if name == "embedding" else rates[0]
        want = torch.ones(3) - rate * torch.tensor([1.0, -1.0, 1.0])
        torch.testing.assert_close(parameter.detach(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [AdamW, MuonAdamW])
def test_a_role_has_its_betas(make: Any) -> None:
    """As if torch's AdamW had each parameter alone, with the betas of its role."""
    betas = {"embedding": (0.7, 0.995), "head": (0.8, 0.96), "scalar": (0.5, 0.6)}
    (named, roles), (alone, _) = parameters(), parameters()
    recipe = make(betas=(0.8, 0.95), eps=1e-9, role_betas=betas)
    optimizer = recipe.build(((n, p) for n, p in named.items() if n != "block"), roles)
    single = {
        group["role"]: torch.optim.AdamW(
            [alone[name] for name, role in roles.items() if role == group["role"]],
            lr=group["lr"], betas=betas.get(group["role"], (0.8, 0.95)), eps=1e-9,
            weight_decay=group["weight_decay"],
        )
        for group in optimizer.param_groups
    }  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for name, p in named.items():
            p.grad = torch.randn(p.shape, generator=generator)
            alone[name].grad = p.grad.clone()
        for each in (optimizer, *single.values()):
            each.step()
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), alone[name].detach(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_three_steps_in_closed_form(decay_embeddings: bool) -> None:
    named, roles = parameters()
    lr, betas, eps, decay, scale = 0.01, (0.8, 0.9), 1e-6, 0.5, {"embedding": 3.0}
    optimizer = AdamW(
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=decay,
        decay_embeddings=decay_embeddings,
        lr_scale=scale,
    ).build(named.items(), roles)
    expected = {name: p.detach().double().clone() for name, p in named.items()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 4):
        for name, p in named.items():
            p.grad = torch.randn(p.shape, generator=generator)
            g = p.grad.double()
            first[name] = betas[0] * first[name] + (1 - betas[0]) * g
            second[name] = betas[1] * second[name] + (1 - betas[1]) * g * g
            rate = lr * scale.get(roles[name], 1.0)
            decays = name in ("block", "head") or (name == "embed" and decay_embeddings)
            expected[name] = expected[name] * (1 - rate * decay * decays) - rate * (
                first[name] / (1 - betas[0] ** step)
            ) / ((second[name] / (1 - betas[1] ** step)).sqrt() + eps)
        optimizer.step()
    for name, p in named.items():
        torch.testing.assert_close(
            p.detach().double(), expected[name], rtol=1e-5, atol=1e-6, msg=name
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be zero or positive, found -1.0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"lr_scale": {"matrices": 2.0}}, "lr_scale names the unknown role 'matrices'"),
        ({"role_betas": {"heads": (0.9, 0.9)}}, "role_betas names the unknown role 'heads'"),
        ({"role_betas": {"head": (0.9, 1.0)}}, r"role_betas\[head\] must be two numbers"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamW(**settings)


def by_class(cls: Any, **options: Any) -> TorchOptimizer:
    return TorchOptimizer(functools.partial(cls, **options))


# All of torch.optim but those that cannot train a network with groups by role, which follow.
DENSE = [
    torch.optim.Adadelta, torch.optim.Adafactor, torch.optim.Adagrad, torch.optim.Adam,
    torch.optim.AdamW, torch.optim.Adamax, torch.optim.ASGD, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.RMSprop, torch.optim.Rprop, torch.optim.SGD,
]  # fmt: skip


@pytest.mark.parametrize("cls", DENSE)
def test_a_class_of_torch_updates_every_role_and_decays_as_ours_do(cls: Any) -> None:
    named, roles = parameters()
    options = {} if cls is torch.optim.Rprop else {"weight_decay": 0.5}  # which has no decay
    recipe = by_class(cls, lr=0.1, **options)
    optimizer = recipe.build(named.items(), roles)
    before = {name: p.detach().clone() for name, p in named.items()}
    for p in named.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in named.items())
    for group in optimizer.param_groups:
        role = group["role"]
        assert group["lr"] == group["initial_lr"] == 0.1
        if options or not decays(role, embeddings=True):
            assert group["weight_decay"] == (0.5 if decays(role, embeddings=True) else 0.0), role
    state = {role: list(optimizer.state[named[name]].values()) for name, role in roles.items()}
    for role in ("matrix", "head"):
        shape = named["block" if role == "matrix" else "head"].shape
        kept = [value for value in state[role] if torch.is_tensor(value) and value.shape == shape]
        assert recipe.moments(role) == len(kept)


def test_torchs_adamw_by_class_takes_the_same_steps_as_the_recipe() -> None:
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    found = []
    for recipe in (AdamW(**options), by_class(torch.optim.AdamW, **options, fused=True)):
        named, roles = parameters()
        optimizer = recipe.build(named.items(), roles)
        for step in range(3):
            for p in named.values():
                p.grad = torch.full_like(p, 0.1 * (step + 1))
            optimizer.step()
        found.append(named)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (torch.optim.LBFGS, "LBFGS cannot update a dense parameter from its gradient"),
        (torch.optim.Muon, "Muon refuses one group of parameters for each role"),
        (torch.optim.SparseAdam, "SparseAdam cannot update a dense parameter"),
        (list, "list returned list, which is no torch.optim.Optimizer"),
    ],
)
def test_a_class_that_cannot_train_a_network_says_so(cls: Any, message: str) -> None:
    """Before anything is computed: `fit` and `plan` ask every role for its moments."""
    recipe = by_class(cls)
    with pytest.raises(UserError, match=message):
        print([recipe.moments(role) for role in ROLES])
