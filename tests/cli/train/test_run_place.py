"""Run place: the name of a run, given, made or taken from the process that launched this one.
Checkpoints: tests/test_resume.py.
"""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from lit_pretrain.cli.train.ranks import LAUNCHED_NAME, RANK_VARIABLES
from lit_pretrain.cli.train.run_place import RunPlace, resolve_place
from lit_pretrain.cli.train.run_settings import RunSettings
from lit_pretrain.errors import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, LAUNCHED_NAME):
        monkeypatch.delenv(name, raising=False)


def place(name: str | None) -> RunPlace:
    return resolve_place(Namespace(name=name, runs="somewhere"), RunSettings(), "fit")


def test_a_run_has_the_name_that_it_is_given_or_that_of_the_verb_and_the_time() -> None:
    assert place("mine") == RunPlace(Path("somewhere/mine"), None)
    assert place(None).folder.name.startswith("fit-2")
    with pytest.raises(UserError, match="must be a plain name"):
        place("../mine")


def test_a_launched_process_takes_the_name_of_the_first_and_makes_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="several processes need one run folder"):
        place(None)
    monkeypatch.setenv(LAUNCHED_NAME, "theirs")
    assert place(None).folder == Path("somewhere/theirs")
