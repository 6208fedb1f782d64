"""Seconds of real optimizer steps on this machine, for the choice of a shape, kept between calls.

A step is one of `fit` itself, with everything that the config says, in a process of its own that
ends after a few steps. What was measured stays in the user's cache folder, in a file for each
combination of machine and settings.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.cli.sweep.fit_options import FitOptions
from lit_pretrain.cli.train.precision import default_precision
from lit_pretrain.cli.train.resolve import settings_of
from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import canonical_hash, write_file
from lit_pretrain.generate.native_step import library_folder
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.plain_data import load_json
from lit_pretrain.scaling.shape_search import TimedStep

WARM = 3
"""First steps, which compile and allocate, that do not count."""
STEPS = (3, 9)
"""Steps that count: at least, and at most if they take no longer than `PATIENCE`."""
PATIENCE = 10.0
"""Seconds."""
IDLE = 0.6
"""Share of the threads' time that a step on a CPU gets of a machine that does nothing else."""
SHAPE = ("n_layer", "width", "n_head", "n_kv_head", "ffn_width", "vocab_size")
"""Fields of a network in which the measured steps of one file differ."""
SECONDS = "LIT_PRETRAIN_STEP_SECONDS"
"""Variable that names the file for the seconds of the steps."""


class StepClock(Callback):
    """Time the steps of a run, write their seconds, and end the process."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.worked: list[float] = []
        """CPU seconds of the process at these times."""

    def on_train_batch_start(self, trainer: Trainer, stage: LightningModule, *_: Any) -> None:
        """Note the time; a step is everything from here to the next one, loading included."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.begins.append(time.perf_counter())
        self.worked.append(time.process_time())
        counted = len(self.begins) - 1 - WARM
        least, most = STEPS
        if counted < least:
            return
        if counted < most and self.begins[-1] - self.begins[WARM] < PATIENCE:
            return
        begins, worked = self.begins[WARM:], self.worked[WARM:]
        found = {
            "steps": [after - before for before, after in pairwise(begins)],
            "busy": (worked[-1] - worked[0]) / (begins[-1] - begins[0]) / torch.get_num_threads(),
        }
        if trainer.is_global_zero:
            write_file(Path(os.environ[SECONDS]), json.dumps(found))
        # At once: a run that ends as usual is validated and saved first, which takes longer than
        # all of its steps.
        os._exit(0)


class Setting(NamedTuple):
    """The machine and the settings that measured steps share."""

    machine: str
    """In words."""
    on_gpu: bool
    key: str
    """Hash of the machine and of all settings that a step's time depends on."""
    config: FitOptions
    """Resolved options of `fit`."""


def setting_of(config: Mapping[str, Any], net: ModelConfig) -> Setting:
    """Describe this machine and the settings of a run.

    Args:
        config: Resolved options of `fit`.
        net: The network of the config.
    """
    trainer, model, data = config["trainer"], config["model"], settings_of(config["data"])
    on_gpu = trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if on_gpu else f"{_cpu()}, {threads} threads"
    precision = trainer["precision"] or default_precision(trainer["accelerator"])
    shape = {name: value for name, value in dataclasses.asdict(net).items() if name not in SHAPE}
    facts = {
        "machine": name, "torch": torch.__version__, "precision": precision, "net": shape,
        "optimizer": (model["optimizer"] or {}).get("class_path"),
        "objective": (model["objective"] or {}).get("class_path"),
        "compile": model["compile"], "checkpointing": model["activation_checkpointing"],
        "average": model["ema_half_life"] is not None, "parallel": config["parallel"],
        "float8": model["float8"],
        "trainer": {name: trainer[name] for name in ("devices", "num_nodes", "strategy")},
        "data": {
            name: data.get(name)
            for name in ("seq_len", "micro_batch_size", "global_batch_tokens", "batch_schedule")
        },
    }  # fmt: skip
    return Setting(f"{name}, {precision}", on_gpu, canonical_hash(facts)[:16], dict(config))


def _cpu() -> str:
    """Name the processor as the system does, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def cache_file(setting: Setting) -> Path:
    """Return the file of what was measured under a setting."""
    return library_folder() / f"step_seconds-{setting.key}.json"


def read_measured(setting: Setting, net: ModelConfig) -> list[TimedStep]:
    """Read the steps that earlier calls have measured.

    Raises:
        UserError: The file holds something else.
    """
    file = cache_file(setting)
    if not file.is_file():
        return []
    try:
        return [
            TimedStep(
                dataclasses.replace(net, **{name: entry[name] for name in SHAPE}),
                int(entry["tokens"]), float(entry["seconds"]), str(entry["date"]),
            )
            for entry in load_json(file.read_text(encoding="utf-8"))["steps"]
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not hold the seconds of steps that `plan --minutes` keeps there"
            f" ({error!r}): remove it, and they are measured again"
        ) from None


def keep_measured(setting: Setting, measured: list[TimedStep]) -> None:
    """Keep measured steps for later calls."""
    steps = [
        {name: getattr(each.net, name) for name in SHAPE}
        | {"tokens": each.tokens, "seconds": each.seconds, "date": each.date}
        for each in measured
    ]
    file = cache_file(setting)
    try:
        write_file(file, json.dumps({"machine": setting.machine, "steps": steps}, indent=1) + "\n")
    except OSError as error:
        warn(f"{file} cannot be written ({error.strerror}): the next call measures again")


def measure_step(setting: Setting, net: ModelConfig, path: str, tokens: int) -> TimedStep:
    """Take some steps of `fit` with a network, and keep the fastest: whatever else runs adds time.

    Args:
        setting: The machine, and the options of the run.
        net: The network.
        path: Dataset.
        tokens: Of a step.

    Raises:
        UserError: The run fails.
    """
    date = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    with tempfile.TemporaryDirectory() as folder:
        file, seconds = Path(folder) / "config.yaml", Path(folder) / "seconds.json"
        file.write_text(yaml.safe_dump(_run_of(setting, net, path, folder)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit", "--config", str(file)],
            env=os.environ | {SECONDS: str(seconds)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not seconds.is_file():
            told = "\n".join((done.stderr or done.stdout).splitlines()[-8:])
            raise UserError(
                f"no step of {net.n_layer} × {net.width} could be measured here: `fit` ended with"
                f" {done.returncode}\n{told}"
            )
        taken = json.loads(seconds.read_text(encoding="utf-8"))
    if not setting.on_gpu and taken["busy"] < IDLE:
        warn(
            f"the steps of {net.n_layer} × {net.width} got {taken['busy']:.0%} of the time of the"
            " threads: this machine is busy, and does more in the time when it is not (--measure)"
        )
    return TimedStep(net, tokens, min(taken["steps"]), date)


def _run_of(setting: Setting, net: ModelConfig, path: str, folder: str) -> FitOptions:
    """Write the options of a run that takes steps and leaves nothing."""
    config: FitOptions = copy.deepcopy(setting.config)
    config["model"]["net"] |= {name: getattr(net, name) for name in SHAPE} | {
        "head_dim": net.head_dim
    }
    settings_of(config["data"])["path"] = path
    clock = {"class_path": f"{__name__}.{StepClock.__name__}"}
    config["trainer"]["callbacks"] = [*(config["trainer"]["callbacks"] or []), clock]
    return config | {
        "runs": folder, "name": "steps", "max_tokens": None, "max_flops": None, "max_epochs": None,
        "max_steps": 1000, "validate_every": 0, "checkpoint_every": 0, "sample_prompts": [],
        "resume": "never", "log_every": 1000,
    }  # fmt: skip
