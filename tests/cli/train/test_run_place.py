"""Run place: the name of a run, given, made or taken from the process that launched this one.
Checkpoints: tests/test_resume.py.
"""

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from lit_pretrain.__main__ import main
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.checkpoint.layout import CheckpointRecord
from lit_pretrain.cli.train.ranks import LAUNCHED_NAME, RANK_VARIABLES
from lit_pretrain.cli.train.run_place import RunPlace, RunSettings, resolve_place, same_rates
from lit_pretrain.errors import UserError
from lit_pretrain.optim import AdamW, MuonAdamW
from tests.test_resume import BASE


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


@pytest.mark.parametrize(
    ("schedule", "step", "same"),
    [
        ({"kind": "constant"}, 60, True),
        ({"kind": "constant", "warmup": "7 steps"}, 100, True),
        ({"kind": "constant", "warmup": "10k tokens"}, 100, True),
        ({"kind": "constant", "warmup": "5%"}, 60, False),
        ({"kind": "wsd", "decay": "20%"}, 80, True),
        ({"kind": "wsd", "decay": "20%"}, 100, False),
        ({"kind": "wsd", "decay_start": "50 steps"}, 40, True),
        ({"kind": "cosine", "warmup": "30 steps"}, 30, True),
        ({"kind": "cosine", "warmup": "30 steps"}, 60, False),
        ({"kind": "linear"}, 60, False),
    ],
)
def test_which_schedules_let_a_run_become_longer(
    schedule: dict[str, str], step: int, same: bool
) -> None:
    """Those whose learning rates up to the checkpoint do not depend on the length."""
    contract = {f"model.schedule.{name}": value for name, value in schedule.items()}
    saved = CheckpointRecord(step, contract | {"max_steps": 100})
    batch = BatchSizes.one(1000)
    assert same_rates(saved, contract | {"max_steps": 150}, AdamW(), batch, batch) is same
    assert not same_rates(saved, contract | {"max_steps": 90}, AdamW(), batch, batch)


@pytest.mark.parametrize(
    ("settings", "step", "same"),
    [
        ({}, 60, True),
        ({"momentum_warmup": "20 steps"}, 60, True),
        ({"momentum_warmup": "20%"}, 10, False),
        ({"momentum_warmup_steps": 0, "momentum_cooldown": "30 steps"}, 60, True),
        ({"momentum_warmup_steps": 0, "momentum_cooldown": "30 steps"}, 80, False),
        ({"weight_decay_schedule": "rate"}, 60, True),
        ({"weight_decay_schedule": "cosine"}, 60, False),
    ],
)
def test_momentum_and_decay_must_have_been_the_same_as_well(
    settings: dict[str, Any], step: int, same: bool
) -> None:
    contract, batch = {"model.schedule.kind": "constant"}, BatchSizes.one(1000)
    saved = CheckpointRecord(step, contract | {"max_steps": 100})
    recipe = MuonAdamW(**settings)
    assert same_rates(saved, contract | {"max_steps": 150}, recipe, batch, batch) is same


@pytest.mark.parametrize(
    ("schedule", "step", "same"),
    [
        ({"kind": "constant", "warmup": "10 steps"}, 60, True),
        ({"kind": "constant", "warmup": "7%"}, 60, False),
        ({"kind": "wsd", "decay": "20%"}, 60, True),
        ({"kind": "wsd", "decay_start": "30 steps"}, 60, False),
        ({"kind": "cosine"}, 60, False),
        ({"kind": "constant"}, 70, False),
    ],
)
def test_which_schedules_let_later_steps_have_another_size(
    schedule: dict[str, str], step: int, same: bool
) -> None:
    """All of them where the run ends with the same token; it may not be shorter than it is."""
    contract = {f"model.schedule.{name}": value for name, value in schedule.items()}
    saved = CheckpointRecord(step, contract | {"max_steps": 100})
    old, new = BatchSizes.one(1000), BatchSizes((0, 60), (1000, 8000))
    assert same_rates(saved, contract | {"max_steps": 66}, AdamW(), old, new) is same
    assert same_rates(saved, contract | {"max_steps": 65}, AdamW(), old, new) is (step <= 65)


def test_all_of_a_run_lies_in_the_home_directory_that_a_config_means(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries do not agree on the tilde: half of the run lay in a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("runs: ~/runs\nname: x\n")
    options = [*BASE, f"--data.path={dataset}", "--config=run.yaml", "--max_steps=1"]
    assert main(["fit", *options]) == 0
    run = tmp_path / "home" / "runs" / "x"
    assert {"metrics.jsonl", "summary.md"} <= {file.name for file in run.iterdir()}
    assert list(run.rglob("events.out.tfevents.*"))
    assert not (tmp_path / "~").exists()
