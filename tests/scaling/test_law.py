"""Laws: values, derivatives and optima against published figures, finite differences and search."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import (
    PARAMETERS,
    Law,
    coordinates,
    from_coordinates,
    jacobian,
    log_loss,
)
from lit_pretrain.scaling.published import published_law as published

LAWS = {
    "chinchilla": Law(
        "chinchilla", {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.33, "beta": 0.29}
    ),
    "tied": Law("tied", {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.31}),
    "data": Law(
        "data",
        {"E": 1.8, "A": 520.0, "B": 1500.0, "alpha": 0.35, "beta": 0.38, "R_D": 15.0, "R_N": 5.0},
    ),
    "kaplan": Law("kaplan", {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}),
}
SIZES = st.floats(math.log(1e7), math.log(1e11)).map(math.exp)
TOKENS = st.floats(math.log(1e9), math.log(1e12)).map(math.exp)


def test_forms_by_hand() -> None:
    n, d = 1e9, 2e10
    assert float(LAWS["chinchilla"].loss(n, d)) == pytest.approx(
        1.7 + 400 / n**0.33 + 900 / d**0.29, rel=1e-14
    )
    assert float(LAWS["tied"].loss(n, d)) == pytest.approx(
        1.7 + 400 / n**0.31 + 900 / d**0.31, rel=1e-14
    )
    assert float(LAWS["kaplan"].loss(n, d)) == pytest.approx(
        ((8.8e13 / n) ** (0.076 / 0.095) + 5.4e13 / d) ** 0.095, rel=1e-14
    )


@pytest.mark.parametrize(
    ("n", "d", "expected"),
    [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)],
)
def test_repeated_data_as_its_authors_print_it(n: float, d: float, expected: float) -> None:
    assert float(published("muennighoff").loss(n, d, 25e9)) == pytest.approx(expected, rel=1e-13)


def test_new_data_is_worth_as_much_as_the_law_without_repetition_says() -> None:
    data = LAWS["data"]
    plain = Law("chinchilla", data.params)
    n, d = data.optimum(1e21)
    assert float(data.loss(n, d, 10 * d)) == pytest.approx(float(plain.loss(n, d)), rel=1e-12)
    assert float(data.loss(n, 4 * d, d)) > float(data.loss(n, 4 * d))
    assert float(data.loss(n, 4 * d, d)) < float(data.loss(n, d, d))


@pytest.mark.parametrize("form", LAWS)
@given(n=SIZES, d=TOKENS, epochs=st.floats(1.2, 30))
def test_gradient_is_that_of_finite_differences(
    form: str, n: float, d: float, epochs: float
) -> None:
    law, step = LAWS[form], 1e-5
    for unique in (None, d / epochs, d * epochs) if form == "data" else (None,):
        by_n, by_d = law.gradient(n, d, unique)
        expected_n = (law.loss(n * (1 + step), d, unique) - law.loss(n * (1 - step), d, unique)) / (
            2 * step
        )
        expected_d = (law.loss(n, d * (1 + step), unique) - law.loss(n, d * (1 - step), unique)) / (
            2 * step
        )
        assert float(by_n * n) == pytest.approx(float(expected_n), rel=1e-5, abs=1e-8)
        assert float(by_d * d) == pytest.approx(float(expected_d), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("form", LAWS)
def test_jacobian_is_that_of_finite_differences(form: str) -> None:
    rng = np.random.default_rng(3)
    n, d, unique = (
        np.exp(rng.uniform(np.log(low), np.log(high), 200))
        for low, high in ((1e7, 1e11), (1e9, 1e12), (1e9, 1e12))
    )
    law = LAWS[form]
    theta = coordinates(law)
    numeric = [
        (log_loss(law.form, theta + h, n, d, unique) - log_loss(law.form, theta - h, n, d, unique))
        / 2e-6
        for h in np.eye(len(theta)) * 1e-6
    ]
    np.testing.assert_allclose(
        jacobian(law.form, theta, n, d, unique), np.stack(numeric, -1), atol=2e-8
    )


@pytest.mark.parametrize("form", LAWS)
def test_coordinates_round_trip(form: str) -> None:
    law = LAWS[form]
    back = from_coordinates(law.form, coordinates(law))
    assert {name: back.params[name] for name in PARAMETERS[law.form]} == pytest.approx(
        dict(law.params), rel=1e-13
    )
    assert form != "tied" or back.params["beta"] == back.params["alpha"]


@pytest.mark.parametrize("form", LAWS)
@pytest.mark.parametrize("c", [1e18, 1e21, 1e24])
def test_optimum_is_the_lowest_point_of_its_budget(form: str, c: float) -> None:
    law = LAWS[form]
    best = law.optimum(c)
    assert 6 * best.n * best.d == pytest.approx(c)
    grid = best.n * np.exp(np.linspace(-3, 3, 601))
    losses = law.loss(grid, c / 6 / grid)
    assert int(np.argmin(losses)) == 300
    ratio = law.optimum(10 * c).n / best.n
    assert math.log10(ratio) == pytest.approx(law.exponents.a, rel=1e-9)
    assert law.exponents.a + law.exponents.b == 1


def test_scarce_data_moves_the_optimum_to_what_it_can_feed() -> None:
    law = LAWS["data"]
    free, scarce = law.optimum(1e22), law.optimum(1e22, 2e10)
    assert free == law.optimum(1e22, 1e13)
    grid = np.geomspace(1e8, 1e12, 200_001)
    losses = law.loss(grid, 1e22 / 6 / grid, 2e10)
    assert scarce.n == pytest.approx(grid[np.argmin(losses)], rel=1e-3)
    assert scarce.n != pytest.approx(free.n, rel=0.01)


def test_a_law_needs_its_parameters() -> None:
    with pytest.raises(UserError, match="missing: B"):
        Law("tied", {"E": 1.0, "A": 2.0, "alpha": 0.3})
