"""AdamW: what decays, at which rate, and the update in closed form."""

import pytest
import torch
from torch import nn

from lit_pretrain.errors import UserError
from lit_pretrain.optim import AdamW
from lit_pretrain.optim.recipe import split_by_role


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
        ({"lr_scale": {"matrices": 2.0}}, "unknown role 'matrices'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamW(**settings)  # type: ignore[arg-type]
