"""Trainer: how many devices a config means, and what each option of Lightning's Trainer does or
is answered with.
"""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.run_board import RunBoard
from lit_pretrain.cli.train.run_place import RunPlace
from lit_pretrain.cli.train.trainer import (
    NEEDED,
    OWNED,
    _loggers,
    begin_loggers,
    check_evaluation,
    check_owned,
    time_limit,
    world_of,
)
from lit_pretrain.errors import UserError
from lit_pretrain.parallel.strategy import STRATEGIES

TINY = [
    "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=1",
    "--model.net.ffn_width=32", "--model.compile=off",
    "--data.seq_len=16", "--data.global_batch_tokens=64", "--data.micro_batch_size=4",
    "--data.val_tokens=64", "--max_steps=3",
    "--sample_prompts=[]",
]  # fmt: skip
WORKS = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "single_device",
    "precision": "bf16-true",
    "logger": False,
    "callbacks": "[{class_path: watching.Watch}]",
    "max_time": "00:01:00:00",
    "deterministic": "warn",
    "benchmark": True,
    "profiler": "simple",
    "detect_anomaly": True,
    "plugins": "[{class_path: lightning.pytorch.plugins.environments.LightningEnvironment}]",
}
"""Options that are Lightning's, with a value that is not the default (else a run would not
differ) where one can be had here.
"""
WATCH = """
import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

class Watch(L.Callback):
    def on_train_batch_end(self, trainer, *args) -> None:
        connector = trainer._accelerator_connector
        self.seen = {
            "accelerator": trainer.strategy.root_device.type == "cpu",
            "devices": trainer.num_devices == 1,
            "num_nodes": trainer.num_nodes == 1,
            "strategy": type(trainer.strategy) is SingleDeviceStrategy,
            "precision": next(trainer.lightning_module.net.parameters()).dtype == torch.bfloat16,
            "logger": trainer.loggers == [],
            "callbacks": self in trainer.callbacks,
            "max_time": any(getattr(each, "seconds", None) == 3600 for each in trainer.callbacks),
            "deterministic": torch.is_deterministic_algorithms_warn_only_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "profiler": type(trainer.profiler) is SimpleProfiler,
            "detect_anomaly": torch.is_anomaly_enabled(),
            "plugins": type(connector._cluster_environment_flag) is LightningEnvironment,
        }
        seen = sorted(name for name, is_so in self.seen.items() if is_so)
        print("seen:", seen, trainer.global_step)
"""


@pytest.mark.parametrize(
    ("devices", "world"), [(1, 2), (3, 6), ("4", 8), ([0, 2, 5], 6), ("auto", 2), (-1, 2)]
)
def test_devices_are_counted_over_all_machines(devices: Any, world: int) -> None:
    assert world_of(Namespace(devices=devices, num_nodes=2, accelerator="cpu")) == world


def trainer_options(**given: Any) -> Namespace:
    defaults = {
        name: each.default
        for name, each in inspect.signature(Trainer.__init__).parameters.items()
        if name != "self"
    }
    return Namespace(**(defaults | given))


def test_what_is_ours_to_decide_is_refused_with_what_to_set_instead() -> None:
    check_owned(trainer_options())
    for name, (_, instead) in OWNED.items():
        with pytest.raises(UserError, match=f"trainer.{name}=5 is not for you to set") as caught:
            check_owned(trainer_options(**{name: 5}))
        assert instead in str(caught.value)


def test_every_option_of_lightning_is_refused_or_known_to_work() -> None:
    """A release of Lightning with a new one fails here: it must be tried below, or be refused."""
    assert sorted([*OWNED, *WORKS]) == sorted(vars(trainer_options()))


def test_the_others_work(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "watching.py").write_text(WATCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "watching", raising=False)
    options = [f"--trainer.{name}={value}" for name, value in WORKS.items()]
    before = torch.backends.cudnn.benchmark
    try:
        assert (
            main(
                [
                    "fit",
                    *TINY,
                    f"--data.path={dataset}",
                    f"--runs={tmp_path}",
                    "--name=run",
                    *options,
                ]
            )
            == 0
        )
    finally:  # they hold for the process
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
        torch.backends.cudnn.benchmark = before
    assert f"seen: {sorted(WORKS)} 3\n" in capsys.readouterr().out
    assert "optimizer_step" in (tmp_path / "run" / "fit-profile.txt").read_text()
    assert not list((tmp_path / "run").glob("events.*"))


@pytest.mark.parametrize(
    "option",
    [
        "fast_dev_run=true",
        "overfit_batches=2",
        "enable_checkpointing=false",
        "barebones=true",
        "min_steps=4",
    ],
)
def test_a_refusal_leaves_nothing_behind(
    option: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "fit",
                *TINY,
                f"--data.path={dataset}",
                f"--runs={tmp_path}",
                "--name=run",
                f"--trainer.{option}",
            ]
        )
        == 2
    )
    assert f"error: trainer.{option.partition('=')[0]}=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_strategies_that_nobody_has_tried_are_refused() -> None:
    for name in STRATEGIES:
        check_owned(trainer_options(strategy=name))
    for name in ("ddp_spawn", "deepspeed", "fsdp_cpu_offload"):
        with pytest.raises(
            UserError,
            match=f"trainer.strategy='{name}' is not supported: set one of auto, ddp, fsdp",
        ):
            check_owned(trainer_options(strategy=name))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), ("00:01:30:00", 5400.0), ({"minutes": 90}, 5400.0)],
    ids=["none", "text", "mapping"],
)
def test_time_limit(given: Any, seconds: float | None) -> None:
    assert time_limit(given) == seconds


@pytest.mark.parametrize("given", ["90", "1:30", "00:00:00:00", {"minute": 3}, {"minutes": -1}])
def test_what_is_no_time_limit(given: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_time="):
        time_limit(given)


def test_a_run_that_a_callback_ends_early_keeps_its_last_step(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also its summary, although no window of metrics is complete."""
    stopper = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.stopping_threshold=99",
    ]
    options = [
        *TINY,
        "--validate_every=2",
        "--max_steps=9",
        "--log_every=100",
        "--checkpoint_every=0",
        *stopper,
    ]
    assert (
        main(["fit", *options, f"--data.path={dataset}", f"--runs={tmp_path}", "--name=run"]) == 0
    )
    assert "done: " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "best.json",
        "step=00000002.ckpt",
    ]
    assert "| training loss, last window |" in (tmp_path / "run" / "summary.md").read_text()


def test_an_evaluation_refuses_what_it_does_not_read() -> None:
    check_evaluation("validate", trainer_options(accelerator="cpu", precision="32-true"))
    for name, value in {
        "devices": 2,
        "limit_val_batches": 3,
        "max_time": "00:00:01:00",
        "logger": False,
    }.items():
        with pytest.raises(UserError, match=f"trainer.{name}={value!r} has no effect on validate"):
            check_evaluation("validate", trainer_options(**{name: value}))


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (None, []),
        (True, []),
        (CSVLogger("csv"), [CSVLogger]),
        ([CSVLogger("csv")], [CSVLogger]),
        ([CSVLogger("csv"), TensorBoardLogger("other")], [CSVLogger, TensorBoardLogger]),
    ],
    ids=["none", "true", "instance", "list", "another TensorBoard"],
)
def test_loggers_are_added_to_tensorboard(given: Any, kinds: list[type], tmp_path: Path) -> None:
    found = _loggers(given, RunPlace(tmp_path, None), first_step=0)
    assert [type(logger) for logger in found] == [RunBoard, *kinds]


def test_no_logger_at_all(tmp_path: Path) -> None:
    assert _loggers(False, RunPlace(tmp_path, None), first_step=0) == []


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_package_of_a_logger_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UserError) as raised:
        _loggers(name, RunPlace(tmp_path, None), first_step=0)
    assert f"pip install 'lit_pretrain[{name}]'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_logger_that_cannot_begin_is_one_line() -> None:
    class Offline(CSVLogger):
        def log_hyperparams(self, params: Any = None) -> None:
            raise ConnectionError("no route\nto the host")

    with pytest.raises(UserError, match="Offline cannot begin: ConnectionError: no route to the"):
        begin_loggers([Offline("csv")], {})


def test_a_logger_of_lightnings_whose_package_is_missing_is_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning.pytorch.loggers.comet", reason="not every Lightning has it")
    if importlib.util.find_spec("comet_ml") is not None:
        pytest.skip("it is installed here")
    options = [*TINY, f"--data.path={dataset}", f"--runs={tmp_path}", "--name=run"]
    assert main(["fit", *options, "--trainer.logger=CometLogger"]) == 2
    error = capsys.readouterr().err
    assert "trainer.logger='lightning.pytorch.loggers.CometLogger' could not be made" in error
    assert "comet" in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()
