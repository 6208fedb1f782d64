"""Intervals of paired differences: they cover what they promise, and nothing is exactly 0."""

import numpy as np
import pytest

from lit_pretrain.compare.intervals import (
    LEAST_UNITS,
    paired_interval,
    resampled_counts,
    unpaired_half_width,
)

DRAWS = 400


def made_losses(
    generator: np.random.Generator, documents: int, seeds: int, *, seed_noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of two configs that do not differ: a document is as hard for both; lengths and noise
    have heavy tails.
    """
    tokens_N = np.ceil(generator.lognormal(4.0, 1.0, documents))
    hardness_N = generator.normal(3.0, 0.5, documents)

    def runs() -> np.ndarray:
        level_K1 = generator.normal(0.0, seed_noise, (seeds, 1))
        noise_KN = 0.05 * generator.standard_t(4, (seeds, documents))
        return (hardness_N + level_K1 + noise_KN) * tokens_N

    return runs(), runs(), tokens_N


@pytest.mark.parametrize(
    ("documents", "seeds", "seed_noise", "matched"),
    [(20, 1, 0.0, True), (80, 1, 0.0, True), (60, 3, 0.01, True), (60, 4, 0.01, False)],
)
def test_intervals_cover_no_difference(
    documents: int, seeds: int, seed_noise: float, *, matched: bool
) -> None:
    generator = np.random.default_rng(documents + seeds)
    covered = 0
    for draw in range(DRAWS):
        one_KN, other_KN, weight_N = made_losses(generator, documents, seeds, seed_noise=seed_noise)
        counts = resampled_counts(np.arange(documents) % 2, 400, draw)
        found = paired_interval(one_KN, other_KN, weight_N, counts, matched=matched)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / DRAWS <= 0.98


def test_pairing_gains_what_documents_share() -> None:
    one_KN, other_KN, weight_N = made_losses(np.random.default_rng(1), 200, 1, seed_noise=0.0)
    counts = resampled_counts(np.zeros(200, dtype=np.int64), 1000, 0)
    found = paired_interval(one_KN, other_KN, weight_N, counts, matched=True)
    unpaired = unpaired_half_width(one_KN, other_KN, weight_N)
    assert found.low is not None
    assert found.high is not None
    assert unpaired is not None
    assert 2 * unpaired > 3 * (found.high - found.low)


def test_nothing_against_itself_is_nothing() -> None:
    loss_KN, _, weight_N = made_losses(np.random.default_rng(2), 40, 1, seed_noise=0.0)
    counts = resampled_counts(np.zeros(40, dtype=np.int64), 200, 0)
    found = paired_interval(loss_KN, loss_KN, weight_N, counts, matched=True)
    assert found == (0.0, 0.0, 0.0)
    assert found.verdict == "the same"


def test_few_documents_have_no_interval() -> None:
    few = LEAST_UNITS - 1
    loss_KN, other_KN, weight_N = made_losses(np.random.default_rng(3), few, 1, seed_noise=0.0)
    counts = resampled_counts(np.zeros(few, dtype=np.int64), 200, 0)
    found = paired_interval(loss_KN, other_KN, weight_N, counts, matched=True)
    assert found.low is None
    assert found.high is None
    assert found.verdict == "no interval"
    assert unpaired_half_width(loss_KN, other_KN, weight_N) is None


def test_strata_keep_their_size() -> None:
    stratum_N = np.array([0] * 5 + [1] * 30 + [2])
    counts_RN = resampled_counts(stratum_N, 2000, 0)
    for stratum in range(3):
        sums_R = counts_RN[:, stratum_N == stratum].sum(axis=1)
        np.testing.assert_allclose(sums_R, np.count_nonzero(stratum_N == stratum), rtol=1e-5)
    # n - 1 of n, each n / (n - 1) times: the variance of a count is 1 for any n.
    np.testing.assert_allclose(counts_RN[:, :5].var(axis=0), 1.0, atol=0.15)
    assert (counts_RN[:, -1] == 1).all()
