"""Graceful stop: only a flag is set, all ranks agree, and the handlers are given back.

That a stopped run goes on exactly is tested in tests/test_resume.py, and two ranks in tests/test_distributed.py.
"""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_pretrain.callbacks.graceful_stop import GracefulStop, Preempted


class Saves:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def save(self, trainer: Any) -> Path:
        self.steps.append(trainer.global_step)
        return Path(f"step={trainer.global_step}")


def trainer(step: int, *, world_size: int = 1, asked_elsewhere: bool = False) -> Any:
    strategy = SimpleNamespace(reduce_boolean_decision=lambda asked, all: asked or asked_elsewhere)
    return SimpleNamespace(global_step=step, max_steps=10, world_size=world_size, strategy=strategy)


@pytest.fixture
def stop() -> Any:
    callback = GracefulStop(Saves())  # type: ignore[arg-type]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    callback.on_train_start(trainer(0))
    yield callback
    callback.teardown(None, None, "fit")  # type: ignore[arg-type]
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_after_the_step_and_stops_before_the_next(stop: GracefulStop, number: int) -> None:
    stop.on_train_batch_end(trainer(1))
    stop.on_train_batch_start(trainer(1))  # nobody asked
    os.kill(os.getpid(), number)
    assert stop.checkpoints.steps == []  # type: ignore[attr-defined]  # nothing is saved inside a handler
    stop.on_train_batch_end(trainer(2))
    assert stop.checkpoints.steps == [2]  # type: ignore[attr-defined]
    with pytest.raises(Preempted, match=f"stopped by {signal.Signals(number).name} after step 2; saved step=2") as caught:
        stop.on_train_batch_start(trainer(2))
    assert caught.value.exit_code == 75


def test_one_rank_that_was_asked_stops_all(stop: GracefulStop) -> None:
    stop.on_train_batch_end(trainer(3, world_size=2, asked_elsewhere=True))
    with pytest.raises(Preempted, match="a signal on another rank"):
        stop.on_train_batch_start(trainer(3))


def test_after_the_last_step_the_run_ends_by_itself(stop: GracefulStop) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.on_train_batch_end(trainer(10))
    assert stop.checkpoints.steps == []  # type: ignore[attr-defined]
