"""Graceful stop: only a flag is set, all ranks agree, and the handlers are given back.

That a stopped run goes on exactly is tested in tests/test_resume.py, two ranks in
tests/test_distributed.py, and a terminal in tests/test_interrupt.py.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pretrain.callbacks import graceful_stop
from lit_pretrain.callbacks.graceful_stop import SIGNALS, GracefulStop, Stopped
from lit_pretrain.checkpoint.layout import checkpoint_name
from lit_pretrain.errors import DivergedError, UserError


class Saves:
    def __init__(self) -> None:
        self.steps: list[tuple[int, bool]] = []
        self.latest: Path | None = None

    def save(self, trainer: Any, *, validation_due: bool = False) -> Path:
        self.steps.append((trainer.global_step, validation_due))
        return Path(checkpoint_name(trainer.global_step))

    def wait(self, trainer: Any) -> None:
        """All is written at once."""


def trainer(step: int, *, elsewhere: int | None = None, validates: bool = False) -> Any:
    """Before the step that follows `step`; `elsewhere` is the reason of another rank."""

    def reduce(told: Any, reduce_op: str) -> torch.Tensor:
        return torch.tensor(max(int(told), elsewhere or 0))

    return SimpleNamespace(
        global_step=step, max_steps=10, world_size=1 if elsewhere is None else 2,
        is_global_zero=True, should_stop=False,
        strategy=SimpleNamespace(reduce=reduce, root_device="cpu"), enable_validation=validates,
        val_check_batch=1,
    )  # fmt: skip


def installed(callback: GracefulStop, now: Any) -> Iterator[GracefulStop]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    callback.on_train_start(now)
    yield callback
    callback.teardown(None, None, "fit")
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.fixture
def now() -> Any:
    """The trainer whose steps the handlers see."""
    return trainer(0)


@pytest.fixture
def stop(now: Any) -> Iterator[GracefulStop]:
    yield from installed(GracefulStop(Saves()), now)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_stops_after_the_step(
    stop: GracefulStop, now: Any, number: int, code: int
) -> None:
    now.global_step = 1
    stop.on_train_batch_end(now)  # nobody asked
    os.kill(os.getpid(), number)
    assert stop.checkpoints.steps == []  # nothing is saved inside a handler
    now.global_step = 2
    with pytest.raises(
        Stopped,
        match=(
            f"stopped by {signal.Signals(number).name} after step 2; saved step=00000002.ckpt;"
            " go on"
        ),
    ) as caught:
        stop.on_train_batch_end(now)
    assert caught.value.exit_code == code
    assert stop.checkpoints.steps == [(2, False)]


def test_a_validation_that_follows_is_saved_as_due(stop: GracefulStop) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.on_train_batch_end(trainer(3, validates=True))
    assert stop.checkpoints.steps == []
    for hook in (stop.on_validation_start, stop.on_validation_batch_end, stop.on_validation_end):
        with pytest.raises(Stopped, match="after step 3"):
            hook(trainer(3, validates=True))
    assert stop.checkpoints.steps == [(3, True), (3, True), (3, False)]


def test_after_the_last_validation_the_run_ends_by_itself(stop: GracefulStop) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.on_validation_end(trainer(10))
    assert stop.checkpoints.steps == []


def test_what_has_just_been_saved_is_not_saved_again(stop: GracefulStop) -> None:
    stop.checkpoints.latest = Path("step=00000004.ckpt")
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match=r"after step 4; saved step=00000004\.ckpt"):
        stop.on_train_batch_end(trainer(4))
    assert stop.checkpoints.steps == []


@pytest.mark.parametrize(
    ("elsewhere", "reason", "code"),
    [(3, "SIGINT", 130), (4, "SIGTERM", 75), (1, "trainer.max_time", 75)],
)
def test_one_rank_that_was_asked_stops_all_with_its_reason(
    stop: GracefulStop, elsewhere: int, reason: str, code: int
) -> None:
    stop.on_train_batch_end(trainer(3, elsewhere=0))
    with pytest.raises(Stopped, match=f"stopped by {reason} after step 3") as caught:
        stop.on_train_batch_end(trainer(3, elsewhere=elsewhere))
    assert caught.value.exit_code == code


def test_ctrl_c_before_the_first_step_is_over_ends_at_once(stop: GracefulStop) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_second_ctrl_c_ends_at_once_but_not_its_echo(
    stop: GracefulStop, now: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(graceful_stop.time, "monotonic", lambda: clock[0])
    now.global_step = 1
    for clock[0] in (100.0, 100.1, 100.4):
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("Ctrl-C again ends at once") == 1
    clock[0] = 101.0
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored(now: Any) -> None:
    """As in a job that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in installed(GracefulStop(Saves()), now):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(graceful_stop.time, "monotonic", lambda: clock[0])
    callback = GracefulStop(Saves(), seconds=60.0)
    clock[0] = 159.0
    callback.on_train_batch_end(trainer(5))
    clock[0] = 161.0
    with pytest.raises(Stopped, match=r"stopped by trainer.max_time after step 6; saved") as caught:
        callback.on_train_batch_end(trainer(6))
    assert caught.value.exit_code == 75


def test_a_rank_that_hears_of_a_refusal_does_not_go_back(now: Any) -> None:
    """The first raises its own; the others must not begin an attempt in which they wait for it."""
    stop, asked = GracefulStop(Saves()), []

    def all_agree(decision: bool, all: bool) -> bool:
        asked.append(decision)
        return False  # one of them refuses

    now.strategy.reduce_boolean_decision = all_agree
    with pytest.raises(UserError, match="no space"):
        stop.before_rewind(now, UserError("no space"))
    with pytest.raises(DivergedError, match="its first rank says why"):
        stop.before_rewind(now, None)
    assert asked == [False, True]
    now.strategy.reduce_boolean_decision = lambda decision, all: decision
    stop.before_rewind(now, None)
