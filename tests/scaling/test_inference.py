"""The inference-aware optimum against the figures of the notes on Sardana et al., and against a
grid.
"""

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.planner import lifetime_flops, lifetime_optimum
from lit_pretrain.scaling.published import published_law


def tokens_of_optimum(name: str, n: float) -> float:
    """D* of the budget for which n is optimal."""
    low, high = 1e15, 1e30
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if published_law(name).optimum(middle).n < n else (low, middle)
    return published_law(name).optimum(low).d


@pytest.mark.parametrize(
    ("name", "n", "share"), [("hoffmann", 7.1e9, 0.163), ("besiroglu", 6.1e9, 0.29)]
)
def test_13b_quality_and_2t_tokens_served(name: str, n: float, share: float) -> None:
    found = lifetime_optimum(published_law(name), 13e9, tokens_of_optimum(name, 13e9), 2e12)
    assert found.n == pytest.approx(n, rel=0.01)
    assert found.share == pytest.approx(share, abs=0.003)
    if name == "hoffmann":
        assert found.saved == pytest.approx(1.63e22, rel=0.01)
    assert float(published_law(name).loss(found.n, found.d)) == pytest.approx(
        float(published_law(name).loss(13e9, tokens_of_optimum(name, 13e9))), rel=1e-9
    )


def test_no_size_is_cheaper() -> None:
    found_law, served = published_law("besiroglu"), 5e11
    found = lifetime_optimum(found_law, 3e9, 1e11, served)
    goal = float(found_law.loss(3e9, 1e11))
    p = found_law.params
    sizes = np.geomspace(found.n / 3, found.n * 3, 999)
    left = goal - p["E"] - p["A"] / sizes ** p["alpha"]
    tokens = (p["B"] / left[left > 0]) ** (1 / p["beta"])
    costs = [lifetime_flops(n, d, served) for n, d in zip(sizes[left > 0], tokens, strict=True)]
    assert min(costs) >= found.flops * (1 - 1e-9)
    assert min(costs) == pytest.approx(found.flops, rel=1e-4)


def test_without_serving_it_is_the_compute_optimum() -> None:
    best = published_law("besiroglu").optimum(1e21)
    found = lifetime_optimum(published_law("besiroglu"), best.n, best.d, 0.0)
    assert found.n == pytest.approx(best.n, rel=1e-4)
    assert found.saved == pytest.approx(0.0, abs=1e21 * 1e-6)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="chinchilla law"):
        lifetime_optimum(published_law("kaplan"), 1e9, 1e10, 1e9)
    with pytest.raises(UserError, match="negative"):
        lifetime_optimum(published_law("besiroglu"), 1e9, 1e10, -1.0)
