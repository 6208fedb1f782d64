"""Gradient noise: the truth of made gradients, and averages that survive a checkpoint."""

import math

import numpy as np
import pytest

from lit_pretrain.optim.gradient_noise import NoiseScales, noise_of


def scale_of_made_gradients(counts: list[int], *, steps: int, seed: int) -> float:
    """Average over steps whose micro-batches of so many tokens have a known gradient and noise."""
    draws = np.random.default_rng(seed)
    gradient, deviation = draws.normal(size=40), draws.uniform(1, 9, size=40)
    scales, n = NoiseScales(), np.array(counts, dtype=float)
    signal = variance = 0.0
    for _ in range(steps):
        noise = draws.normal(size=(len(n), 40)) * deviation / np.sqrt(n)[:, None]
        means = gradient + noise
        whole = (n[:, None] * means).sum(axis=0) / n.sum()
        found = noise_of(
            float((means**2).sum(axis=1).mean()), float((whole**2).sum()),
            mean_inverse=float((1 / n).mean()), tokens=float(n.sum()),
        )  # fmt: skip
        scales.add({"all": found})
        signal, variance = signal + found.signal, variance + found.variance
    truth = float((deviation**2).sum() / (gradient**2).sum())
    assert scales.scales()["all"] == pytest.approx(truth, rel=0.35)
    return variance / signal / truth


@pytest.mark.parametrize("counts", [[64, 64], [100, 20, 60, 500], [32] * 8, [1, 400]])
def test_made_gradients_have_their_true_noise_scale(counts: list[int]) -> None:
    assert scale_of_made_gradients(counts, steps=4000, seed=1) == pytest.approx(1, abs=0.02)


def test_a_role_is_left_out_while_its_signal_cannot_be_seen() -> None:
    scales = NoiseScales()
    scales.add(
        {
            "matrix": noise_of(3.0, 2.0, mean_inverse=0.1, tokens=20),
            "head": noise_of(3.0, 0.1, mean_inverse=0.1, tokens=20),
            "vector": noise_of(1.0, 1.5, mean_inverse=0.1, tokens=20),
        }
    )
    assert scales.scales() == {"matrix": pytest.approx(20 / 1)}


def test_averages_go_on_from_a_checkpoint() -> None:
    noises = [noise_of(3.0 + math.sin(i), 2.0, mean_inverse=0.1, tokens=20) for i in range(9)]
    whole, before, after = NoiseScales(), NoiseScales(), NoiseScales()
    for noise in noises:
        whole.add({"matrix": noise})
    for noise in noises[:4]:
        before.add({"matrix": noise})
    after.load_state(before.state())
    for noise in noises[4:]:
        after.add({"matrix": noise})
    assert after.scales() == whole.scales()
    assert after.measured == 9
