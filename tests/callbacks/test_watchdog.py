"""Watchdog: what counts as a hang, and what is said of each rank; real ones: tests/test_hang.py."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_pretrain.callbacks import watchdog
from lit_pretrain.callbacks.graceful_stop import GracefulStop
from lit_pretrain.callbacks.watchdog import START_SECONDS, Sign, Watchdog, accounts
from lit_pretrain.errors import UserError

STOP = GracefulStop(None)  # only its advice is read


class Ended(Exception):
    """Stands for the end of the process."""


class Looks:
    """Stands for the event on which the thread waits: each look moves the clock.

    Args:
        clock: What `time.monotonic` reads.
        seconds: Between two looks.
    """

    def __init__(self, clock: list[float], seconds: list[float]) -> None:
        self.clock, self.seconds = clock, list(seconds)

    def wait(self, poll: float) -> bool:
        if not self.seconds:
            return True
        self.clock[0] += self.seconds.pop(0)
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def trainer(rank: int = 0, ranks: int = 1) -> Any:
    return SimpleNamespace(
        global_rank=rank, world_size=ranks, is_global_zero=rank == 0, global_step=7,
        strategy=SimpleNamespace(launcher=None),
    )  # fmt: skip


def made(run: Path, limit: float, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    def end(*arguments: object) -> None:
        raise Ended

    made = Watchdog(run, limit, STOP)
    monkeypatch.setattr(made, "_end", end)
    made._least = 0.0
    return made


@pytest.mark.parametrize("compiled", [False, True])
def test_until_the_first_step_the_limit_is_longer(
    compiled: bool, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog, now = made(tmp_path, 20.0, monkeypatch), trainer()
    stage = SimpleNamespace(net=SimpleNamespace(is_compiled=compiled))
    dog._least = START_SECONDS
    dog._watch(now, 20.0, Looks(clock, [2.0] * 149))
    dog.on_train_start(now, stage)
    if compiled:
        dog._watch(now, 20.0, Looks(clock, [2.0] * 149))
        dog.on_train_batch_end(now)
    with pytest.raises(Ended):
        dog._watch(now, 20.0, Looks(clock, [2.0] * 10))


@pytest.mark.parametrize(
    ("looks", "ends"),
    [
        ([2.0] * 9, False),
        ([2.0] * 10, True),
        ([2.0] * 4 + [3600.0, 2.0, 2.0], False),  # the laptop was closed for an hour
        ([2.0] * 4 + [3600.0] + [2.0] * 4, True),
    ],
)
def test_only_time_in_which_the_process_runs_counts(
    looks: list[float],
    ends: bool,
    clock: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dog, event = made(tmp_path, 20.0, monkeypatch), Looks(clock, looks)
    try:
        dog._watch(trainer(), 20.0, event)
    except Ended:
        assert ends
        assert not event.seconds
    else:
        assert not ends


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_start", "on_train_batch_start", "on_train_batch_end",
        "on_validation_batch_start", "on_validation_end", "on_save_checkpoint",
    ],
)  # fmt: skip
def test_every_hook_is_progress(
    hook: str, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = made(tmp_path, 20.0, monkeypatch)
    dog._watch(trainer(), 20.0, Looks(clock, [2.0] * 9))
    getattr(dog, hook)(trainer(), SimpleNamespace(net=SimpleNamespace(is_compiled=False)))
    dog._watch(trainer(), 20.0, Looks(clock, [2.0] * 9))


def test_a_rank_waits_for_one_that_works(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the others do while the first evaluates."""
    first, second = (made(tmp_path, 20.0, monkeypatch) for _ in range(2))
    second._watch(trainer(1, 2), 20.0, Looks(clock, [2.0] * 9))
    first._exchange(trainer(0, 2))
    second._watch(trainer(1, 2), 20.0, Looks(clock, [2.0] * 9))
    sign = tmp_path / "hang" / "rank-0.json"
    os.utime(sign, (time.time() - 30, time.time() - 30))
    with pytest.raises(Ended):
        second._watch(trainer(1, 2), 20.0, Looks(clock, [2.0] * 9))


def test_a_rank_that_was_stopped_ends_when_another_has_reported(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "hang" / "rank-1.txt"
    report.parent.mkdir()
    report.write_text("of an earlier attempt")
    os.utime(report, (0, 0))
    dog = made(tmp_path, 20.0, monkeypatch)
    dog._watch(trainer(0, 2), 20.0, Looks(clock, [2.0]))
    report.write_text("of this one")
    os.utime(report, (time.time() + 1, time.time() + 1))
    with pytest.raises(Ended):
        dog._watch(trainer(0, 2), 20.0, Looks(clock, [2.0]))


def test_the_stopped_rank_is_named_first() -> None:
    others = {
        1: Sign("in step 8", 20.0, 11, "a", 0.5),
        2: None,
        3: Sign("in step 8", 0.0, 13, "b", 21.0),
    }
    assert accounts(others, silent=7.0) == [
        "rank 3 (process 13 on b) is stopped or gone: its last sign of life is 21 s old",
        "rank 2 has given no sign of life",
        "rank 1 (process 11 on a) has made no progress for 20 s, in step 8",
    ]
    many = accounts(dict.fromkeys(range(1, 100)), silent=7.0)
    assert len(many) == 9
    assert many[-1] == "and 91 more"


def test_nothing_is_left_of_a_run_that_ends(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, 0.5, STOP)
    with dog.watching(trainer(0, 2)):
        deadline = time.monotonic() + 10
        while not (tmp_path / "hang" / "rank-0.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        dog.beat()
    assert not (tmp_path / "hang").exists()
    before = threading.active_count()
    with Watchdog(tmp_path, None, STOP).watching(trainer()):
        assert threading.active_count() == before


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_is_a_positive_number(limit: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hang_timeout=.* must be a positive number of seconds"):
        Watchdog(tmp_path, limit, STOP)
