"""The best mixture: a planted optimum is found, and the search is the optimum of its objective."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.scaling.mixture_law import (
    MixtureLaw,
    best_mixture,
    design_mixtures,
    fit_mixture,
    fit_mixture_law,
    round_shares,
    within_caps,
)

NOISE = 0.003


def planted(sources: int, seed: int) -> tuple[np.ndarray, list[MixtureLaw], list[float]]:
    """Natural shares, the laws of as many targets as sources, and the targets' weights."""
    rng = np.random.default_rng(seed)
    natural = round_shares(np.maximum(rng.dirichlet(np.full(sources, 2.0)), 0.02))
    laws = [
        MixtureLaw(
            float(np.log(rng.uniform(0.5, 1.2))),
            rng.uniform(-1, 0.3, sources) - 1.5 * (np.arange(sources) == j),
        )
        for j in range(sources)
    ]
    return natural, laws, list(rng.dirichlet(np.full(sources, 3.0)))


@pytest.mark.parametrize(("sources", "seed"), [(2, 0), (3, 1), (5, 3)])
def test_a_planted_optimum_is_found(sources: int, seed: int) -> None:
    natural, laws, targets = planted(sources, seed)
    caps = np.ones(sources)
    truth = best_mixture(laws, targets, natural, caps, 0.05)
    design = design_mixtures(natural, caps, max(16, 4 * sources), 0)
    weights = np.concatenate([design, [natural] * 3])
    rng = np.random.default_rng(seed)
    losses = np.stack([law.loss(weights) for law in laws], axis=1)
    losses *= np.exp(rng.normal(0, NOISE, losses.shape))
    found = fit_mixture(weights, losses, targets, natural, caps, kl=0.05)
    assert np.abs(found.best_M - truth).sum() <= 0.1
    assert min(found.rank_correlation) > 0.8
    assert max(found.error) < 0.02
    low, high = found.interval_2M
    assert np.mean((low - 0.005 <= truth) & (truth <= high + 0.005)) > 0.7
    gain = sum(
        a * float(law.loss(natural) - law.loss(truth)) for a, law in zip(targets, laws, strict=True)
    )
    assert found.gain == pytest.approx(gain, abs=0.02)


def test_noise_alone_moves_little_from_the_natural_mixture() -> None:
    natural = np.array([0.2, 0.3, 0.5])
    weights = np.concatenate([design_mixtures(natural, np.ones(3), 16, 0), [natural] * 3])
    rng = np.random.default_rng(0)
    losses = 1.5 * np.exp(rng.normal(0, NOISE, (len(weights), 1)))
    found = fit_mixture(weights, losses, [1.0], natural, np.ones(3), kl=0.05)
    assert np.abs(found.best_M - natural).sum() < 0.25
    assert found.gain < 0.01


@pytest.mark.parametrize("caps", [(1.0, 1.0, 1.0), (0.5, 0.4, 1.0), (0.34, 0.33, 0.33)])
@pytest.mark.parametrize("kl", [0.0, 0.05, 10.0])
def test_the_search_finds_what_a_grid_finds(caps: tuple[float, ...], kl: float) -> None:
    natural, laws, targets = planted(3, 5)
    caps_M = np.array(caps)
    found = best_mixture(laws, targets, natural, caps_M, kl)
    assert found.sum() == pytest.approx(1)
    assert (found <= caps_M + 1e-9).all()
    grid = np.array([
        (a, b, 200 - a - b) for a, b in itertools.product(range(201), repeat=2) if a + b <= 200
    ]) / 200  # fmt: skip
    grid = grid[(grid <= caps_M + 0.0051).all(axis=1)]

    def objective(weights: np.ndarray) -> np.ndarray:
        apart = (weights * np.log(np.maximum(weights, 1e-12) / natural)).sum(axis=-1)
        return kl * apart + sum(a * law.loss(weights) for a, law in zip(targets, laws, strict=True))

    best = grid[objective(grid).argmin()]
    assert np.abs(found - best).sum() < 0.03
    if caps == (1.0, 1.0, 1.0):
        assert objective(found) <= objective(grid).min() + 1e-9


def test_a_law_comes_back_from_its_own_losses() -> None:
    natural, laws, _ = planted(3, 6)
    weights = design_mixtures(natural, np.ones(3), 16, 0)
    for law in laws:
        found = fit_mixture_law(weights, law.loss(weights))
        assert found.loss(weights) == pytest.approx(law.loss(weights), rel=1e-5)
        slope = [
            (law.loss(natural + step) - law.loss(natural - step)) / 2e-6
            for step in 1e-6 * np.eye(3)
        ]
        assert law.gradient(natural) == pytest.approx(slope, rel=1e-4)


shares = st.lists(st.floats(0.001, 1), min_size=2, max_size=8)


@given(shares, st.data())
@settings(max_examples=200)
def test_shares_stay_shares(weights: list[float], data: st.DataObject) -> None:
    raw = np.array(weights)
    rounded = round_shares(raw)
    assert rounded.sum() == pytest.approx(1)
    assert np.abs(rounded - raw / raw.sum()).max() < 0.001
    assert (np.abs(rounded * 1000 - np.rint(rounded * 1000)) < 1e-9).all()
    caps = np.array(data.draw(st.lists(st.floats(0.05, 1), min_size=len(raw), max_size=len(raw))))
    caps = caps / min(1.0, caps.sum())
    cut = within_caps(raw, caps)
    assert cut.sum() == pytest.approx(1)
    assert (cut <= caps + 1e-9).all()
    free = cut < caps - 1e-9
    if free.sum() > 1:  # those below their caps keep their proportions
        assert np.ptp(cut[free] / raw[free]) < 1e-6 * (cut[free] / raw[free]).max()


def test_a_design_covers_the_simplex_within_the_caps() -> None:
    natural, caps = np.array([0.7, 0.2, 0.1]), np.array([1.0, 0.6, 0.3])
    design = design_mixtures(natural, caps, 16, 0)
    assert design.shape == (16, 3)
    assert len(np.unique(design, axis=0)) == 16
    assert design.sum(axis=1) == pytest.approx(np.ones(16))
    assert (design <= caps + 0.001).all()
    assert (design.max(axis=0) > caps - 0.05).all()
    assert (design.min(axis=0) < [0.2, 0.05, 0.05]).all()
    terms = np.concatenate([design, design[:, [0, 0, 1]] * design[:, [1, 2, 2]]], axis=1)
    rng = np.random.default_rng(0)
    drawn = np.array([
        [within_caps(each, caps) for each in rng.dirichlet(np.ones(3), 16)] for _ in range(50)
    ])  # fmt: skip
    others = np.concatenate([drawn, drawn[..., [0, 0, 1]] * drawn[..., [1, 2, 2]]], axis=2)
    information = np.linalg.slogdet(np.swapaxes(others, 1, 2) @ others)[1]
    assert np.linalg.slogdet(terms.T @ terms)[1] > np.quantile(information, 0.9)


def test_a_design_does_not_depend_on_threads() -> None:
    code = (
        "import numpy as np\n"
        "from lit_pretrain.scaling.mixture_law import design_mixtures\n"
        "natural = np.full(6, 1 / 6)\n"
        "print(design_mixtures(natural, np.ones(6), 24, 3).tolist())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"OMP_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
