"""Run folders: what a law needs of our own runs, from their config and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters
from lit_pretrain.report.folder import CONFIG, METRICS, PROVENANCE, read_metrics
from lit_pretrain.scaling.runs import Counts, Record


def read_folders(paths: Sequence[Path], counts: Counts) -> list[Record]:
    """Runs by their folders; a folder that holds run folders stands for all of them.

    N is counted from the config, D is what was read (inputs, repeats included) with its distinct tokens as the run has recorded them, C
    the run's own FLOPs with attention, and the loss that of the last validation, in nats per token and in bits per byte.

    Raises:
        UserError: A folder holds no run, or a run is not finished.
    """
    folders = [run for path in paths for run in _runs_at(path)]
    for i, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:i]}:
            raise UserError(f"{folder} is the same run as one that was named before; leave one out")
    return [_read(folder, counts) for folder in folders]


def _runs_at(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give tables with --data")
    if (path / CONFIG).is_file():
        return [path]
    found = sorted(child for child in path.iterdir() if (child / CONFIG).is_file())
    if not found:
        raise UserError(f"{path} is not a run folder and holds none: no {CONFIG} in it or one level below")
    return found


def _read(run: Path, counts: Counts) -> Record:
    config = _load(run / CONFIG)
    try:
        net, max_steps = dict(config["model"]["net"]), int(config["max_steps"])
        scaling = net.get("rope_scaling")
        shape = ModelConfig(**{**net, "rope_scaling": RopeScaling(**scaling) if scaling else None})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run / CONFIG} is not the config of a run ({type(error).__name__}: {error}); leave {run} out") from None
    held_out = [line for line in read_metrics(run) if "val/loss" in line]
    if not held_out:
        raise UserError(f"{run} has no validation in {METRICS} yet; finish it (`lit_pretrain fit ... --resume auto`) or leave it out")
    last = held_out[-1]
    if last["step"] != max_steps:
        raise UserError(
            f"{run} is at step {last['step']:,} of {max_steps:,}: before the schedule has ended its loss is no final loss; "
            "finish it (`--resume auto`) or leave it out"
        )
    facts = _load(run / PROVENANCE) if (run / PROVENANCE).is_file() else {}
    return Record(
        label=str(run),
        losses={"nats": float(last["val/loss"]), "bits_per_byte": float(last["val/bits_per_byte"])},
        n=float(count_parameters(shape).counted(counts)),
        d=float(last["progress/tokens"]),
        c=float(last["progress/flops"]),
        unique=None if facts.get("unique_tokens") is None else float(facts["unique_tokens"]),
        vocabulary=facts.get("tokenizer_hash"),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: a mapping was expected, found {type(found).__name__}")
    return found
