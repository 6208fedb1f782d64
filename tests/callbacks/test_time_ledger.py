"""Time ledger: the parts of every attempt add up to its wall time, whatever happens in it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks import time_ledger
from lit_pretrain.callbacks.time_ledger import MOST_SAVED, TimeLedger
from lit_pretrain.report.goodput import BETWEEN, LOST, goodput, read_attempts

STEPS = 6


class Slow(L.Callback):
    """Take time in a step and in its validation, and be preempted after a step."""

    def __init__(self, preempted: int = 0) -> None:
        self.preempted = preempted

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        time.sleep(0.05)

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        time.sleep(0.02)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.preempted:
            os.kill(os.getpid(), signal.SIGTERM)


def test_all_time_of_two_attempts_has_its_part(dataset: Path, tmp_path: Path) -> None:
    options = [
        "fit", "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.compile=off", "--data.seq_len=32", "--data.micro_batch_size=8",
        "--data.global_batch_tokens=256", "--data.val_tokens=512", f"--max_steps={STEPS}",
        "--log_every=1", "--validate_every=3", "--checkpoint_every=2", "--sample_prompts=['a']",
        "--sample_tokens=4", "--trainer.accelerator=cpu", f"--data.path={dataset}",
        f"--runs={tmp_path}", "--name=run", "--resume=auto",
        f"--trainer.callbacks+={__name__}.Slow",
    ]  # fmt: skip
    assert main([*options, "--trainer.callbacks.preempted=4"]) == 75
    assert main(options) == 0
    first, second = read_attempts(tmp_path / "run")
    assert [first.first_step, first.step, second.first_step, second.step] == [0, 4, 4, STEPS]
    assert sorted(first.saved) == ["2", "4"]
    for attempt, steps, validations in ((first, 4, 1), (second, 2, 1)):
        wall = attempt.ended - attempt.began
        assert sum(attempt.seconds.values()) == pytest.approx(wall, rel=0.01)
        assert attempt.seconds["training"] > 0.05 * steps
        assert attempt.seconds["validating"] > 0.02 * validations
        assert min(attempt.seconds[part] for part in ("starting", "saving", "data")) > 0
    assert second.seconds["other"] > 0  # samples, and the summary
    found = goodput([first, second])
    assert found[LOST] == pytest.approx(0, abs=1e-6)
    assert sum(found.values()) == pytest.approx(second.ended - first.began, rel=0.01)
    summary = (tmp_path / "run" / "summary.md").read_text()
    share = found["training"] / sum(found.values())
    assert f"| goodput | {share:.1%} of " in summary
    assert BETWEEN in summary


def test_parts_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time_ledger.time, "monotonic", lambda: now[0])
    ledger = TimeLedger(tmp_path)
    now[0] = 107.0
    ledger.begin(97.0, first_step=0, goes_on=True)  # ten seconds of imports
    for part, seconds in (("data", 1.0), ("training", 4.0), ("validating", 2.0), ("data", 1.0)):
        ledger.switch(part)
        now[0] += seconds
    ledger.move("saving", 0.25)
    ledger.remember(3)
    ledger.write(3)
    assert ledger.attempts[0].seconds == {
        "training": 4.0, "data": 1.75, "validating": 2.0, "saving": 0.25, "starting": 10.0,
        "other": 0.0,
    }  # fmt: skip
    for step in range(4, 4 + MOST_SAVED):
        ledger.remember(step)
    assert "3" not in ledger.attempts[0].saved
    assert len(ledger.attempts[0].saved) == MOST_SAVED
