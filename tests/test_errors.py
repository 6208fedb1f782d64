"""Errors: a misspelt name gets the nearest known one, and a far one gets nothing."""

import pytest

from lit_pretrain.errors import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("widht", ["width", "depth"], ["width"]),
        ("EN", ["en", "fr"], ["en"]),
        (
            "learning_rat",
            ["model.optimizer.learning_rate", "data.path"],
            ["model.optimizer.learning_rate"],
        ),
        ("fine_web", ["fineweb", "FineWeb"], ["fineweb"]),  # the first of those that differ in case
        ("xyzzy", ["fit", "prepare"], []),
    ],
)
def test_nearest(name: str, known: list[str], found: list[str]) -> None:
    assert nearest(name, known) == found


def test_did_you_mean_follows_a_sentence() -> None:
    known = ["fox_choice", "fox_choices", "owl"]
    assert did_you_mean("fox_choise", known) == " Did you mean 'fox_choice'?"
    assert did_you_mean("fox_choise", known, limit=3) == (
        " Did you mean 'fox_choice' or 'fox_choices'?"
    )
    assert did_you_mean("xyzzy", known) == ""
