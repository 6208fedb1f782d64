"""Muon and AdamW as one optimizer, against torch's own, step by step."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError
from lit_pretrain.optim import AdamW, MuonAdamW
from lit_pretrain.optim.muon import orthogonalize_, polynomials

ROLES = {
    "tall": "matrix",
    "wide": "matrix",
    "square": "matrix",
    "table": "embedding",
    "head": "head",
    "gain": "vector",
}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "tall": (48, 16),
        "wide": (16, 40),
        "square": (24, 24),
        "table": (50, 16),
        "head": (50, 16),
        "gain": (16,),
    }
    return {
        name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()
    }


def give_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def test_newton_schulz_is_torchs_muon() -> None:
    """The same polynomial in the same precision; the products are ordered differently, so bf16
    rounding is all that may differ.
    """
    ours, theirs = parameters(), parameters()
    recipe = MuonAdamW(
        matrix_lr=0.02,
        momentum=0.95,
        momentum_warmup_steps=0,
        weight_decay=0.1,
        orthogonalization="newton_schulz",
        iterations=5,
    )
    matrices = {name: p for name, p in ours.items() if ROLES[name] == "matrix"}
    optimizer = recipe.build(matrices.items(), ROLES)
    reference = torch.optim.Muon(
        [theirs[name] for name in matrices],
        lr=0.02,
        momentum=0.95,
        nesterov=True,
        weight_decay=0.1,
        ns_steps=5,
        adjust_lr_fn="original",
    )
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for name in matrices:
        moved = theirs[name].detach() - parameters()[name].detach()
        difference = (ours[name].detach() - theirs[name].detach()).norm() / moved.norm()
        assert difference < 0.05, f"{name}: {difference}"


@pytest.mark.parametrize("iterations", [4, 5])
@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (32, 40)])
def test_orthogonalisation_keeps_directions_and_levels_lengths(
    iterations: int, shape: tuple[int, int]
) -> None:
    """Singular vectors stay, and singular values that differ by a factor of 100 come out within
    a band around one.
    """
    draw = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(
        torch.randn(3, *shape, dtype=torch.float64, generator=draw), full_matrices=False
    )
    values = torch.logspace(-2, 0, shape[0], dtype=torch.float64)
    x = u @ (values[:, None] * vh)
    out = orthogonalize_(x.clone(), polynomials("polar_express", iterations), tighten=True)
    inside = u.mT @ out @ vh.mT
    levelled = inside.diagonal(dim1=1, dim2=2)
    assert (inside - torch.diag_embed(levelled)).abs().max() < 1e-8
    assert (levelled > 0.4).all(), levelled
    assert (levelled < 1.6).all(), levelled


def test_a_zero_gradient_moves_nothing() -> None:
    named = {"square": nn.Parameter(torch.ones(8, 8))}
    optimizer = MuonAdamW(weight_decay=0.0).build(named.items(), ROLES)
    named["square"].grad = torch.zeros(8, 8)
    optimizer.step()
    assert torch.equal(named["square"].detach(), torch.ones(8, 8))


def test_the_rest_is_torchs_adamw() -> None:
    ours, theirs = parameters(), parameters()
    rest = [name for name, role in ROLES.items() if role != "matrix"]
    recipe = MuonAdamW(embedding_lr=0.1, head_lr=0.01, vector_lr=0.02, betas=(0.8, 0.95), eps=1e-10)
    optimizer = recipe.build(((n, ours[n]) for n in rest), ROLES)
    rates = {"table": 0.1, "head": 0.01, "gain": 0.02}
    reference = torch.optim.AdamW(
        [{"params": [theirs[n]], "lr": rates[n]} for n in rest],
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0.0,
    )
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for name in rest:
        torch.testing.assert_close(ours[name].detach(), theirs[name].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [
        MuonAdamW(weight_decay=0.1, cautious=True),
        MuonAdamW(update_beta2=0.9),
        AdamW(lr=0.01),
    ],
)
def test_resume_is_bit_exact(recipe: MuonAdamW | AdamW) -> None:
    def run(
        named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range
    ) -> list[Tensor]:
        for step in steps:
            give_gradients(named, step)
            optimizer.step()
        return [p.detach().clone() for p in named.values()]

    whole = parameters()
    want = run(whole, recipe.build(whole.items(), ROLES), range(8))
    first = parameters()
    before = recipe.build(first.items(), ROLES)
    run(first, before, range(4))
    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    after = recipe.build(second.items(), ROLES)
    after.load_state_dict(state_dict=copy.deepcopy(before.state_dict()))
    got = run(second, after, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_every_role_has_its_rate_and_only_matrices_decay() -> None:
    groups = (
        MuonAdamW(weight_decay=0.1, adamw_weight_decay=0.2)
        .build(parameters().items(), ROLES)
        .param_groups
    )
    by_role = {group["role"]: group for group in groups}
    assert by_role["matrix"]["algorithm"] == "muon"
    assert by_role["matrix"]["weight_decay"] == 0.1
    assert by_role["vector"]["weight_decay"] == 0.0
    assert by_role["head"]["weight_decay"] == 0.2
    assert all(group["lr"] == group["initial_lr"] > 0 for group in groups)


def test_adamw_decays_matrices_and_not_gains() -> None:
    groups = (
        AdamW(lr=0.1, weight_decay=0.3, decay_embeddings=False, lr_scale={"head": 2.0})
        .build(parameters().items(), ROLES)
        .param_groups
    )
    decay = {group["role"]: group["weight_decay"] for group in groups}
    assert decay == {"matrix": 0.3, "embedding": 0.0, "head": 0.3, "vector": 0.0}
    assert {group["role"]: group["lr"] for group in groups}["head"] == pytest.approx(0.2)


@pytest.mark.parametrize("recipe", [MuonAdamW(), MuonAdamW(update_beta2=0.9), AdamW()])
def test_moments_are_the_tensors_of_the_state(recipe: MuonAdamW | AdamW) -> None:
    named = parameters()
    optimizer = recipe.build(named.items(), ROLES)
    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in named.items():
        kept = [
            value
            for key, value in optimizer.state[parameter].items()
            if key != "step" and value.shape == parameter.shape
        ]
        assert len(kept) == recipe.moments(ROLES[name]), name


def test_the_momentum_rises_from_its_start() -> None:
    """Without Nesterov's look ahead the buffer is the average of the gradients so far."""
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    recipe = MuonAdamW(
        momentum=0.9, momentum_start=0.5, momentum_warmup_steps=4, nesterov=False, matrix_lr=0.0
    )
    optimizer = recipe.build([("w", weight)], {"w": "matrix"})
    want = torch.zeros(4, 4)
    for momentum in (0.5, 0.6, 0.7, 0.8, 0.9, 0.9):
        weight.grad = torch.randn(4, 4)
        want = momentum * want + (1 - momentum) * weight.grad
        optimizer.step()
        torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], want)


@pytest.mark.parametrize("settings", [{}, {"momentum_warmup_steps": 7, "weight_decay": 0.1}])
def test_a_run_changes_no_bit_of_what_moves_by_steps(settings: dict[str, Any]) -> None:
    """Following a run, with nothing set that follows it."""
    found = []
    for follows in (False, True):
        named, recipe = parameters(), MuonAdamW(**settings)
        optimizer = recipe.build(named.items(), ROLES)
        if follows:
            recipe.follow_run(optimizer, 10, BatchSizes.one(100))
        for step in range(10):
            give_gradients(named, step)
            optimizer.step()
        found.append((named, optimizer.state_dict()["param_groups"]))
    (plain, groups), (following, same_groups) = found
    assert all(torch.equal(plain[name], following[name]) for name in plain)
    assert groups == same_groups


def test_momentum_warms_up_and_cools_down_in_shares_of_the_run() -> None:
    recipe = MuonAdamW(
        momentum=0.9, momentum_start=0.5, momentum_warmup="20%", momentum_cooldown="30%",
        momentum_final=0.6,
    )  # fmt: skip
    at = recipe.over_run(20, BatchSizes.one(64))
    found = [at(step).momentum for step in range(20)]
    rise, fall = [0.5, 0.6, 0.7, 0.8], [0.9, 0.85, 0.8, 0.75, 0.7, 0.65]
    assert found == pytest.approx([*rise, *[0.9] * 10, *fall])
    # The spans move with the tokens: steps of 192 from the tenth on.
    grown = recipe.over_run(20, BatchSizes((0, 10), (64, 192)))
    assert [grown(step).momentum for step in range(8)] == pytest.approx(
        [0.5 + 0.4 * step / 8 for step in range(8)]
    )
    steps = MuonAdamW(momentum_warmup_steps=4, momentum_cooldown="5 steps")
    assert steps.over_run(20, BatchSizes.one(64))(19).momentum == pytest.approx(0.87)


@pytest.mark.parametrize("schedule", ["rate", "linear", "cosine", None])
@pytest.mark.parametrize("cautious", [False, True])
def test_weight_decay_follows_the_run(schedule: Any, cautious: bool) -> None:
    """Against the same steps without decay: what is left is the decay, of each step alone."""
    steps, rates = 5, [1.0, 1.0, 0.75, 0.5, 0.25]
    shares = {
        "rate": rates,
        "linear": [1 - step / steps for step in range(steps)],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * step / steps) for step in range(steps)],
        None: [1.0] * steps,
    }[schedule]
    recipe = MuonAdamW(
        matrix_lr=0.1, weight_decay=0.3, cautious=cautious, weight_decay_schedule=schedule,
        momentum=0.0, momentum_start=0.0,
    )  # fmt: skip
    weight, other = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = recipe.build([("w", weight)], {"w": "matrix"})
    recipe.follow_run(optimizer, steps, BatchSizes.one(64))
    plain = replace(recipe, weight_decay=0.0).build([("w", other)], {"w": "matrix"})
    for rate, share in zip(rates, shares, strict=True):
        before = weight.detach().clone()
        other.data.copy_(before)
        weight.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(7))
        other.grad = weight.grad.clone()
        for each in (optimizer, plain):
            each.param_groups[0]["lr"] = 0.1 * rate
            each.step()
        towards_zero = (before - other.detach()) * before > 0
        decayed = 0.1 * rate * 0.3 * share * before * (towards_zero if cautious else 1.0)
        torch.testing.assert_close(other.detach() - weight.detach(), decayed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"momentum_warmup": "60%", "momentum_cooldown": "50%"},
            "take 22 steps, more than the run of 20",
        ),
        ({"momentum_cooldown": "10%"}, r"momentum_warmup_steps: 300 and .* take 302 steps"),
        ({"momentum_warmup": "21 steps"}, "take 21 steps, more than"),
        ({"momentum_warmup": "20"}, "momentum_warmup: '20' has no unit"),
        ({"momentum_cooldown": "a bit"}, "momentum_cooldown: cannot read the span 'a bit'"),
    ],
)
def test_spans_that_cannot_be_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MuonAdamW(**settings).over_run(20, BatchSizes.one(64))


def levelled(updates: list[Tensor], beta2: float) -> list[Tensor]:
    """NorMuon, vector by vector: row by row of a tall or square matrix, else column by column."""
    found, squares = [], None
    for update in updates:
        rows = update if update.shape[0] >= update.shape[1] else update.T
        now = [float((row * row).sum()) for row in rows]
        old = squares or [0.0] * len(now)
        squares = [beta2 * a + (1 - beta2) * b for a, b in zip(old, now, strict=True)]
        scaled = torch.stack([row / s**0.5 for row, s in zip(rows, squares, strict=True)])
        scaled *= update.norm() / scaled.norm()
        found.append(scaled if update.shape[0] >= update.shape[1] else scaled.T)
    return found


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 12), (3, 16, 8)])
def test_updates_are_levelled_and_keep_their_norm(shape: tuple[int, ...]) -> None:
    """Three steps, against the updates of plain Muon; of a stack every matrix by itself."""
    updates: dict[float | None, list[Tensor]] = {}
    for beta2 in (None, 0.9):
        weight = nn.Parameter(torch.zeros(shape))
        recipe = MuonAdamW(matrix_lr=1.0, lr_scaling="match_rms_adamw", update_beta2=beta2)
        optimizer = recipe.build([("w", weight)], {"w": "matrix"})
        updates[beta2] = []
        draw = torch.Generator().manual_seed(3)
        for _ in range(3):
            weight.data.zero_()
            weight.grad = torch.randn(shape, generator=draw) ** 3
            optimizer.step()
            updates[beta2].append(weight.detach().clone().view(-1, *shape[-2:]))
    for i in range(len(updates[0.9][0])):
        plain = [update[i] for update in updates[None]]
        found = [update[i] for update in updates[0.9]]
        for before, after, want in zip(plain, found, levelled(plain, 0.9), strict=True):
            torch.testing.assert_close(after, want, rtol=0.02, atol=0.01 * float(want.abs().max()))
            assert after.norm().item() == pytest.approx(before.norm().item(), rel=0.01)
    assert not torch.allclose(updates[0.9][-1], updates[None][-1], rtol=0.02)


@pytest.mark.parametrize(("shape", "wide"), [((8, 32), True), ((32, 8), False)])
def test_lr_scaling_by_shape(shape: tuple[int, int], wide: bool) -> None:
    """The same orthogonal update, times the factor that each paper gives."""
    moved = {}
    for scaling in ("original", "match_rms_adamw"):
        weight = torch.nn.Parameter(torch.zeros(shape))
        recipe = MuonAdamW(matrix_lr=1.0, lr_scaling=scaling)
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        recipe.build([("w", weight)], {"w": "matrix"}).step()
        moved[scaling] = weight.detach()
    jordan = 1.0 if wide else (32 / 8) ** 0.5
    liu = 0.2 * 32**0.5
    torch.testing.assert_close(moved["match_rms_adamw"] / liu, moved["original"] / jordan)
    # A root mean square of 0.2 is what AdamW's updates have.
    assert moved["match_rms_adamw"].square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"matrix_lr": -1.0}, "matrix_lr must be zero or positive"),
        ({"weight_decay": -0.1}, "weight_decay must be zero or positive"),
        ({"role_betas": {"matrix": (0.9, 0.95)}}, "role_betas names matrix, but Muon's matrices"),
        ({"role_betas": {"table": (0.9, 0.95)}}, "role_betas names the unknown role 'table'"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"momentum_start": -0.1}, r"momentum_start must lie in"),
        ({"momentum_final": 0.8}, "momentum_final=0.8 has no effect without momentum_cooldown"),
        (
            {"momentum_final": 1.0, "momentum_cooldown": "9%"},
            r"momentum_final must lie in \[0, 1\)",
        ),
        ({"momentum_warmup_steps": -1}, "momentum_warmup_steps must be zero or positive"),
        ({"update_beta2": 1.0}, r"update_beta2 must lie in \[0, 1\)"),
        ({"iterations": 6}, "iterations=6 is not possible with polar_express; use 3, 4 or 5"),
        (
            {"iterations": 0, "orthogonalization": "newton_schulz"},
            "iterations=0 is not possible with newton_schulz",
        ),
    ],
)
def test_mistakes_in_the_recipe_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MuonAdamW(**settings)
