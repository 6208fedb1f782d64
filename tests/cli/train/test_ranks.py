"""Ranks: which process is the first, and what it makes of the end of others. Two real ranks:
tests/test_distributed.py.
"""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_pretrain.cli.train import ranks
from lit_pretrain.cli.train.ranks import (
    LAUNCHED_NAME,
    RANK_VARIABLES,
    check_restarts,
    is_first_process,
    one_voice,
)
from lit_pretrain.errors import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, LAUNCHED_NAME):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(ranks, "PATIENCE_SECONDS", 0.2)


@pytest.mark.parametrize("name", RANK_VARIABLES)
def test_every_launcher_numbers_its_processes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first_process()
    monkeypatch.setenv(name, "0")
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert not is_first_process()


@pytest.mark.parametrize(
    ("shared", "restarts", "warned"),
    [("True", "3", True), ("False", "3", False), ("True", "0", False)],
)
def test_restarts_that_share_a_store_are_warned_of(
    shared: str,
    restarts: str,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    check_restarts()
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err) == warned


def trainer(processes: list["subprocess.Popen[bytes]"], *, rank: int = 0) -> SimpleNamespace:
    launcher = _SubprocessScriptLauncher(None, 2, 1)
    launcher.procs = list(processes)
    return SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), local_rank=rank)


def started(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code])


def test_the_first_process_ends_those_it_launched() -> None:
    waiting = started("import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="cosmic ray"), one_voice(trainer([waiting])):
        raise RuntimeError("cosmic ray")
    assert waiting.wait(10) == -9


def test_the_failure_of_another_rank_is_not_reported_as_our_own() -> None:
    failed = started("raise SystemExit(7)")
    failed.wait(30)
    with pytest.raises(SystemExit) as stop, one_voice(trainer([failed])):
        raise RuntimeError("connection closed by peer")
    assert stop.value.code == 7


def test_a_mistake_that_all_see_is_said_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="too low"), one_voice(trainer([])):
        raise UserError("too low")
    monkeypatch.setenv(LAUNCHED_NAME, "run")
    with pytest.raises(UserError, match="too low"), one_voice(trainer([], rank=1)):
        raise UserError(
            "too low"
        )  # the first process goes on: it does not know of it, so that this one speaks
    monkeypatch.setattr(ranks.os, "getppid", iter([10, 1, 1]).__next__)  # and here it ends
    with pytest.raises(SystemExit) as stop, one_voice(trainer([], rank=1)):
        raise UserError("too low")
    assert stop.value.code == 2
