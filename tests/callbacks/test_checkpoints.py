"""Checkpoints: the newest few and the best remain, and a save that fails takes nothing with it.

That what is saved continues a run exactly, also after a full disk, is tested in
tests/test_resume.py.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pretrain.callbacks import checkpoints
from lit_pretrain.callbacks.checkpoints import Checkpoints, PlainCheckpointIO, validates_now
from lit_pretrain.checkpoint.layout import BestRecord, best_record, checkpoint_name
from lit_pretrain.checkpoint.shards import load_archive
from lit_pretrain.checkpoint.weights import write_checkpoint
from lit_pretrain.errors import DivergedError, UserError
from lit_pretrain.report.run_folder import METRICS, MetricsFile


class FakeTrainer:
    """As much of a Trainer as the callback asks of it; saves its network."""

    max_steps, world_size, is_global_zero, sanity_checking, enable_validation = (
        100,
        1,
        True,
        False,
        True,
    )
    should_stop = False
    state = SimpleNamespace(fn="fit")

    def __init__(self, every: int = 0) -> None:
        self.global_step = 0
        self.val_check_batch = every
        self.callback_metrics: dict[str, float] = {}
        self.strategy = SimpleNamespace(
            barrier=lambda name: None,
            reduce_boolean_decision=lambda decision, all: decision,
            root_device=torch.device("cpu"),
        )
        self.lightning_module = torch.nn.Linear(2, 2)
        self.optimizers = [torch.optim.SGD(self.lightning_module.parameters())]
        self.io: PlainCheckpointIO

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        checkpoint = {
            "state_dict": self.lightning_module.state_dict(),
            "optimizer_states": [each.state_dict() for each in self.optimizers],
        }
        self.io.save_checkpoint(checkpoint, path)


Make = Callable[..., Checkpoints]


@pytest.fixture(params=[False, True], ids=["at-once", "in-a-thread"])
def made(request: pytest.FixtureRequest) -> Make:
    """Make the callback; whatever it does, it does with a thread as without."""

    def make(run: Path, **options: Any) -> Checkpoints:
        run.mkdir(exist_ok=True)
        settings: dict[str, Any] = {
            "every": 2,
            "keep": 2,
            "contract": {"model.seed": 0},
            "asynchronous": request.param,
            "on_saved": lambda seconds: None,
            "on_written": lambda step: None,
        }
        return Checkpoints(run, **(settings | options))

    return make


def train(
    callback: Checkpoints, trainer: Any, steps: int, losses: dict[int, float] | None = None
) -> None:
    """Steps, each with the validation that follows it, as Lightning calls the callback."""
    trainer.io = callback.io
    try:
        for step in range(trainer.global_step + 1, steps + 1):
            trainer.global_step = step
            callback.on_train_batch_end(trainer)
            if validates_now(trainer):
                trainer.callback_metrics["val/loss"] = (losses or {}).get(step, 9.0)
                callback.on_validation_end(trainer)
    except Exception as error:
        callback.on_exception(trainer, trainer.lightning_module, error)
        raise
    callback.wait(trainer)


def kept(run: Path) -> list[int]:
    return sorted(int(path.stem.split("=")[1]) for path in (run / "checkpoints").glob("*.ckpt"))


def test_the_newest_remain(made: Make, tmp_path: Path) -> None:
    train(made(tmp_path), FakeTrainer(), 9)
    assert kept(tmp_path) == [6, 8]


def test_the_best_remains_beside_the_newest(made: Make, tmp_path: Path) -> None:
    train(
        made(tmp_path), FakeTrainer(every=2), 12, {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 6.0, 12: 7.0}
    )
    assert kept(tmp_path) == [4, 10, 12]
    assert best_record(tmp_path) == BestRecord(checkpoint_name(4), 3.0, 4)


def test_a_better_one_lets_the_old_best_go(made: Make, tmp_path: Path) -> None:
    train(made(tmp_path, keep=1), FakeTrainer(every=2), 8, {2: 3.0, 4: 5.0, 6: 2.0, 8: 4.0})
    assert kept(tmp_path) == [6, 8]


def test_a_validation_without_a_checkpoint_is_not_the_best(made: Make, tmp_path: Path) -> None:
    train(made(tmp_path, every=4), FakeTrainer(every=2), 8, {2: 1.0, 4: 5.0, 6: 1.0, 8: 4.0})
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["step"] == 8


def test_it_is_saved_once_and_after_the_validation(made: Make, tmp_path: Path) -> None:
    written: list[int] = []
    train(made(tmp_path, on_written=written.append), FakeTrainer(every=2), 4)
    assert len(written) == 2


def test_the_last_step_is_saved_whatever_the_interval(made: Make, tmp_path: Path) -> None:
    trainer = FakeTrainer()
    trainer.max_steps = 5
    train(made(tmp_path, every=0), trainer, 5)
    assert kept(tmp_path) == [5]


def test_a_torn_checkpoint_does_not_count_as_one_that_is_kept(made: Make, tmp_path: Path) -> None:
    callback, trainer = made(tmp_path), FakeTrainer()
    train(callback, trainer, 4)
    torn = tmp_path / "checkpoints" / checkpoint_name(4)
    torn.write_bytes(torn.read_bytes()[:-30])
    train(callback, trainer, 6)
    assert kept(tmp_path) == [2, 6]


def test_scratch_of_a_killed_run_is_swept_up(made: Make, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step=00000004.ckpt.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step=00000006.ckpt.tmp").write_text("half")
    made(tmp_path).setup(FakeTrainer(), None, "fit")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def writes_and_raises(error: Exception) -> Callable[..., None]:
    def write(checkpoint: Any, path: Path) -> None:
        write_checkpoint(checkpoint, path)
        raise error

    return write


NO_SPACE = OSError(28, "No space left on device")
HIDDEN = [
    RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
]
HIDDEN[0].__context__, HIDDEN[1].__context__ = NO_SPACE, HIDDEN[0]


@pytest.mark.parametrize("error", [NO_SPACE, *HIDDEN])
def test_a_failed_save_names_the_cause_and_leaves_the_older_ones(
    made: Make, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, trainer = made(tmp_path), FakeTrainer()
    train(callback, trainer, 3)
    monkeypatch.setattr(checkpoints, "write_checkpoint", writes_and_raises(error))
    with pytest.raises(
        UserError,
        match=(r"step=00000004.ckpt could not be written: .*No space left.*--resume auto"),
    ):
        train(callback, trainer, 4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [checkpoint_name(2)]


def test_our_own_mistake_is_not_called_a_full_disk(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake = writes_and_raises(RuntimeError("shapes differ"))
    monkeypatch.setattr(checkpoints, "write_checkpoint", mistake)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(made(tmp_path), FakeTrainer(), 2)


@pytest.mark.parametrize(("every", "keep"), [(-1, 1), (1, 0)])
def test_settings_that_make_no_sense(made: Make, tmp_path: Path, every: int, keep: int) -> None:
    with pytest.raises(UserError, match=f"checkpoint_every={every}.*keep_checkpoints={keep}"):
        made(tmp_path, every=every, keep=keep)


def test_what_is_not_finite_is_not_saved(made: Make, tmp_path: Path) -> None:
    callback, trainer = made(tmp_path), FakeTrainer()
    train(callback, trainer, 2)
    with torch.no_grad():
        trainer.lightning_module.weight[0, 1] = float("inf")
    with pytest.raises(DivergedError, match="step 4: weight holds numbers that are not finite"):
        train(callback, trainer, 4)
    assert kept(tmp_path) == [2]


def test_nor_is_a_moment_that_is_not(made: Make, tmp_path: Path) -> None:
    callback, trainer = made(tmp_path), FakeTrainer()
    optimizer = trainer.optimizers[0] = torch.optim.AdamW(trainer.lightning_module.parameters())
    trainer.lightning_module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.state[trainer.lightning_module.bias]["exp_avg_sq"][0] = float("nan")
    with pytest.raises(DivergedError, match="exp_avg_sq of bias holds numbers"):
        train(callback, trainer, 2)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_without_a_number_ends_the_run(
    made: Make, tmp_path: Path, loss: float
) -> None:
    trainer = FakeTrainer(every=2)
    with pytest.raises(DivergedError, match="validation at step 4 has the loss"):
        train(made(tmp_path), trainer, 6, {2: 3.0, 4: loss})
    assert kept(tmp_path) == [2]


@pytest.mark.parametrize("text", ["", "{}", '{"checkpoint": "step=0000', "null", '["a"]'])
def test_a_damaged_best_json_is_rebuilt(
    made: Make, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    callback, trainer = made(tmp_path), FakeTrainer(every=2)
    metrics = MetricsFile(tmp_path / METRICS, first_step=0)
    losses = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 6.0}
    for step, loss in losses.items():
        metrics.write(step, {"val/loss": loss})
    train(callback, trainer, 8, losses)
    (tmp_path / "checkpoints" / "best.json").write_text(text)
    train(callback, trainer, 10, losses)
    assert kept(tmp_path) == [4, 8, 10]
    assert "best.json is damaged" in capsys.readouterr().err
    assert best_record(tmp_path) == BestRecord(checkpoint_name(4), 3.0, 4)


# ---------------------------------------------------------------------- in a thread


class SlowDisk:
    """Writes a checkpoint when it is allowed to."""

    def __init__(self) -> None:
        self.may_write, self.waits = threading.Event(), threading.Event()
        self.error: OSError | None = None

    def __call__(self, checkpoint: Any, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
        self.waits.set()
        assert self.may_write.wait(60)
        if self.error is not None:
            raise self.error
        write_checkpoint(checkpoint, path)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr(checkpoints, "write_checkpoint", disk)
    return disk


@pytest.fixture
def saving(slow_disk: SlowDisk, tmp_path: Path) -> tuple[Checkpoints, FakeTrainer]:
    """A callback that is writing the checkpoint of step 2."""
    callback = Checkpoints(
        tmp_path, every=2, keep=2, contract={}, asynchronous=True, on_saved=lambda seconds: None,
        on_written=lambda step: None,
    )  # fmt: skip
    trainer = FakeTrainer()
    trainer.io, trainer.global_step = callback.io, 1
    callback.on_train_batch_end(trainer)  # provides the memory
    trainer.global_step = 2
    callback.on_train_batch_end(trainer)
    assert slow_disk.waits.wait(60)
    return callback, trainer


def test_training_goes_on_and_the_weights_of_the_step_are_saved(
    saving: tuple[Checkpoints, FakeTrainer], slow_disk: SlowDisk, tmp_path: Path
) -> None:
    callback, trainer = saving
    before = {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.lightning_module.parameters():
            parameter.add_(1.0)
    trainer.global_step = 3
    callback.on_train_batch_end(trainer)
    assert kept(tmp_path) == []  # half a file has no name
    slow_disk.may_write.set()
    callback.on_train_end(trainer)
    [saved] = (tmp_path / "checkpoints").iterdir()
    found = load_archive(saved)["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_a_second_save_waits_for_the_first(
    saving: tuple[Checkpoints, FakeTrainer], slow_disk: SlowDisk, tmp_path: Path
) -> None:
    callback, trainer = saving
    trainer.global_step = 4
    second = threading.Thread(target=callback.on_train_batch_end, args=(trainer,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    slow_disk.may_write.set()
    second.join(60)
    callback.wait(trainer)
    assert kept(tmp_path) == [2, 4]


def test_what_fails_in_the_thread_ends_the_run_at_the_next_step(
    saving: tuple[Checkpoints, FakeTrainer], slow_disk: SlowDisk, tmp_path: Path
) -> None:
    callback, trainer = saving
    slow_disk.error = OSError(28, "No space left on device")
    slow_disk.may_write.set()

    def train_on() -> None:
        for step in range(3, 1000, 2):  # none of which is due
            trainer.global_step = step
            callback.on_train_batch_end(trainer)
            time.sleep(0.05)

    with pytest.raises(
        UserError, match=r"step=00000002.ckpt could not be written: .*No space left"
    ):
        train_on()


@pytest.mark.parametrize(
    ("error", "written"),
    [(UserError("stopped"), [2]), (KeyError("a mistake"), [2]), (SystemExit(75), [])],
)
def test_an_exception_waits_for_it_unless_somebody_asked_twice(
    saving: tuple[Checkpoints, FakeTrainer],
    slow_disk: SlowDisk,
    tmp_path: Path,
    error: BaseException,
    written: list[int],
) -> None:
    callback, trainer = saving
    if written:
        slow_disk.may_write.set()
    callback.on_exception(trainer, trainer.lightning_module, error)
    assert kept(tmp_path) == written
    slow_disk.may_write.set()


def test_a_failure_does_not_hide_what_ended_the_run(
    saving: tuple[Checkpoints, FakeTrainer],
    slow_disk: SlowDisk,
    capsys: pytest.CaptureFixture[str],
) -> None:
    callback, trainer = saving
    slow_disk.error = OSError(28, "No space left on device")
    slow_disk.may_write.set()
    callback.on_exception(trainer, trainer.lightning_module, KeyError())
    assert "warning: checkpoint" in capsys.readouterr().err
