"""Published laws: the figures that their sources and independent computations give."""

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.bootstrap import interval, normal_draws
from lit_pretrain.scaling.law import coordinates
from lit_pretrain.scaling.published import DEFAULT, published_law, published_names


def test_every_law_says_what_it_is() -> None:
    assert published_names() == ("besiroglu", "besiroglu_lad", "hoffmann", "kaplan", "muennighoff")
    assert published_law().name == DEFAULT == "besiroglu"
    for name in published_names():
        found = published_law(name)
        assert found.citation
        assert found.note
        assert found.unit.startswith("nats per token")
        assert found.tokens[0] < found.tokens[1]
        assert found.parameters[0] < found.parameters[1]
        assert found.counts == ("nonembed" if name == "kaplan" else "total")
    with pytest.raises(UserError, match="no published law 'chinchila'; there is: besiroglu"):
        published_law("chinchila")


@pytest.mark.parametrize(
    ("name", "n", "d", "a"),
    [
        ("besiroglu", 73.2e9, 1.31e12, 0.5139),
        ("besiroglu_lad", 72.4e9, 1.33e12, 0.5126),
        ("hoffmann", 40.4e9, 2.38e12, 0.4565),
    ],
)
def test_optimum_of_chinchillas_budget(name: str, n: float, d: float, a: float) -> None:
    best = published_law(name).optimum(5.76e23)
    assert best.n == pytest.approx(n, rel=2e-3)
    assert best.d == pytest.approx(d, rel=4e-3)
    assert published_law(name).exponents.a == pytest.approx(a, abs=1e-4)


def test_besiroglus_uncertainty_is_that_of_their_bootstrap() -> None:
    found = published_law("besiroglu")
    assert found.log_covariance is not None
    covariance = np.array(found.log_covariance)
    assert np.linalg.eigvalsh(covariance).min() > 0
    draws = normal_draws(found, coordinates(found), covariance.tolist(), draws=4000, seed=0)
    assert draws.failed == 0
    a = np.array([drawn.exponents.a for drawn in draws.laws])
    assert a.std(ddof=1) == pytest.approx(0.020, abs=0.002)
    low, high = interval(np.array([drawn.optimum(5.76e23).n for drawn in draws.laws]))
    assert low == pytest.approx(51.7e9, rel=0.1)
    assert high == pytest.approx(112e9, rel=0.1)
