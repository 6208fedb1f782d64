"""Options of `scaling sweep`, and the config that each run of the sweep gets."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import parse_yaml, read_yaml

if TYPE_CHECKING:
    from lit_pretrain.cli.plan.question import PlanCLI
    from lit_pretrain.scaling.sweep import SweepRun


FitOptions: TypeAlias = dict[str, Any]
"""Options of `fit`, nested as in a config file."""


@dataclass
class SweepBudget:
    """One FLOP budget."""

    flops: float
    """Training FLOPs of each of its runs, with full attention, as `fit` counts them."""
    sizes: list[str] | None = None
    """Names of the sizes that spend it. Default: all."""


@dataclass
class SlurmSettings:
    """Engine slurm: a script with one array task for every run that is missing."""

    partition: str | None = None
    """See `sinfo`. Default: the cluster's."""
    time: str = "24:00:00"
    """Time limit of a run. A run that does not end in time saves itself, and the next array
    continues it.
    """
    environment: str | None = None
    """Command that activates the Python environment on the nodes. Default: the directory of
    this Python comes first in PATH.
    """
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, e.g. `{account: mine, gpus-per-node: "8"}`."""


@dataclass(kw_only=True)
class SweepSettings:
    """Options of `lit_pretrain scaling sweep`."""

    base: list[str] = field(default_factory=list)
    """Config files of `fit` that all runs share; later ones win."""
    run: FitOptions = field(default_factory=dict)
    """More options of `fit` that all runs share, as a config has them; they override base."""
    out: str = "runs/sweep"
    """Folder for the run folders, and for the configs and logs of all runs."""
    sizes: dict[str, FitOptions] = field(default_factory=dict)
    """Name of each size → the fields of `model.net` in which its shape differs from the base."""
    budgets: list[SweepBudget] = field(default_factory=list)
    """FLOP budgets, and the sizes that spend them."""
    rule: Literal["deepseek", "step_law", "olmo", "none"] = "step_law"
    """Published rule for the batch and for AdamW's learning rate; none: the values of the base, the
    same for all sizes.
    """
    lr_factor: float = 1.0
    """Factor on the rule's learning rate for all runs, found by tuning one of them."""
    batch_factor: float = 1.0
    """Factor on the rule's batch."""
    engine: Literal["local", "slurm", "list"] = "local"
    """local: train now, in processes of this machine. slurm: write the script of a job array.
    list: write the commands of the runs, one per line.
    """
    processes: int = 1
    """Runs that train at the same time; for a job array, 0 sets no limit."""
    threads: int | None = None
    """CPU threads of a run's process. Default: the cores of this machine divided by processes."""
    launcher: str = ""
    """Prefix of the command of every run, such as `nice -n 10` or `numactl --cpunodebind 0`."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    """Engine slurm."""
    device: str | None = None
    """Kind of the devices, to estimate the time from their peak: H100, … Default: estimate it from
    the speed of finished runs of the sweep.
    """
    mfu: float | None = None
    """Share of the peak that training reaches. Default: depends on the device, with its source."""
    price: float | None = None
    """Dollars per device-hour."""
    dry_run: bool = False
    """Print what the sweep would take, and write and start nothing."""


def mapping(value: Any) -> FitOptions:
    """Parse the value of `run` as a plain mapping.

    With the type of its field jsonargparse would instantiate the classes that the mapping names,
    and import torch for them.
    """
    found = parse_yaml(value, "run") if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError(f"a mapping of options of `fit` is needed, found {value!r}")
    return found


def merged(settings: SweepSettings) -> FitOptions:
    """Merge the options of `fit` that all runs share.

    Raises:
        UserError: A file cannot be read or holds no mapping, or `run` sets what the sweep sets.
    """
    found: FitOptions = {}
    for file in settings.base:
        content = read_yaml(file, "base:")
        if not isinstance(content, dict):
            raise UserError(
                f"base: {file} holds no options of `fit`: a mapping was expected, found"
                f" {type(content).__name__}"
            )
        _merge(found, content)
    _merge(found, settings.run)
    taken = [
        name
        for name in ("name", "runs", "max_steps", "max_tokens", "max_flops")
        if found.pop(name, None) is not None
    ]
    ours = [name for name in taken if name in settings.run]
    if ours:
        raise UserError(
            f"run: {ours[0]} is for the sweep to set: a run's length follows from its budget, its"
            " folder from out"
        )
    optimizer = (found.get("model") or {}).get("optimizer")
    if isinstance(optimizer, str):
        found["model"]["optimizer"] = {"class_path": optimizer}
    return found


def _merge(into: FitOptions, more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def checked(options: Mapping[str, Any], settings: SweepSettings) -> PlanCLI:
    """Parse options of `fit` as `plan` does, so that every name is known and every value typed."""
    from lit_pretrain.cli.plan.question import PlanCLI

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "base.yaml"
        file.write_text(
            yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        cli = PlanCLI(["--config", str(file)])
    cli.settings.device, cli.settings.mfu = settings.device, settings.mfu
    cli.settings.price = settings.price
    return cli


def run_config(base: Mapping[str, Any], settings: SweepSettings, run: SweepRun) -> FitOptions:
    """Build the whole config of one run, for `lit_pretrain fit --config`."""
    config = copy.deepcopy(dict(base))
    data = {"global_batch_tokens": run.batch_tokens, "micro_batch_size": run.micro_batch_size}
    _merge(config, {"model": {"net": settings.sizes[run.size]}, "data": data})
    if settings.rule != "none":
        # Round it as the table does: a rule that holds to within a factor needs no sixteen digits.
        _merge(config, {"model": {"optimizer": {"init_args": {"lr": float(f"{run.lr:.4g}")}}}})
    return config | {"name": run.name, "runs": settings.out, "max_steps": run.steps}
