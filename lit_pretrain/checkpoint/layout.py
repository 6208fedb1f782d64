"""Layout: what a checkpoint looks like on disk, and how the checkpoints of a run are found.

    <run>/config.yaml                            shape of the network
    <run>/checkpoints/step=00000100.ckpt         one file, or a folder if the run saves shards
    <run>/checkpoints/best.json                  the one with the lowest validation loss

Each carries digests of its content (`digests.py`); a sharded one consists of `.metadata`,
`meta.pt`, the shards and `digests.json`.

Beside Lightning's own entries (loops, optimizer states, schedulers) a checkpoint holds

    lit_pretrain     `CheckpointRecord`: step, contract, whether a validation is due
    state_dict       the network under `net.`; the score head of a reward model under `score.weight`
    adapter          `AdapterRecord` of a run whose state_dict holds an adapter alone
    metrics_window   sums of the metrics window that the checkpoint interrupts
    noise_scale      averages of gradient noise and signal, of a run that measures them
    average          how far the moving average is, whose tensors lie in the optimizer's state
    answers          answers that further optimizer steps still learn from
    standalone       `Standalone`, of a checkpoint that no run folder stands behind: a script's

All of it is tensors and primitives, so that `torch.load(weights_only=True)` reads it. A new layout
begins here; `weights.py` reads it and `callbacks/checkpoints.py` writes it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from lit_pretrain.checkpoint.digests import damage
from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import is_remote, read_sealed_json
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.plain_data import load_json, read_config
from lit_pretrain.report.run_folder import CONFIG, METRICS, no_run, read_metrics

CHECKPOINTS_FOLDER = "checkpoints"
BEST = "best.json"
SHARDS_INDEX = ".metadata"
"""Of a sharded checkpoint: which file holds which part of which tensor."""
SHARDED_ENTRIES = "meta.pt"
"""Of a sharded checkpoint: every entry that is not a tensor of the network or the optimizer."""
HF_CONFIG = "config.json"
"""The file that marks a Hugging Face folder."""
_NAME = re.compile(r"step=(\d+)\.ckpt")

RECORD_KEY = "lit_pretrain"
ADAPTER_KEY = "adapter"
WINDOW_KEY = "metrics_window"
ANSWERS_KEY = "answers"
AVERAGE_KEY = "average"
GUARD_KEY = "guard"
NOISE_KEY = "noise_scale"
STANDALONE_KEY = "standalone"
CheckpointEntries: TypeAlias = dict[str, Any]
"""A checkpoint in memory, with the entries that the head of this file lists. Lightning passes it
from hook to hook, and each adds its own, so that it is no TypedDict.
"""
NET_PREFIX = "net."
"""Prefix of the network's keys in `state_dict`."""
SCORE_KEY = "score.weight"
"""Key of a reward model's score head, (1, D), in `state_dict`."""


class Standalone(TypedDict):
    """Hold what a run folder would say of a checkpoint's network."""

    net: dict[str, Any]
    """The fields of its `ModelConfig`."""
    files: dict[str, str]
    """Name -> content of the files of tokenizer and template."""


def standalone(net: ModelConfig, save: Callable[[Path], None]) -> Standalone:
    """Describe the network of a checkpoint that lies in no run folder.

    Args:
        net: Its shape.
        save: Writes to a folder what the network needs to read and write text.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        files = {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}
    return {"net": asdict(net), "files": files}


@dataclass(frozen=True)
class CheckpointRecord:
    """Describe a checkpoint: how far the run is, and the contract that it holds to."""

    step: int
    """Optimizer steps that the run has made."""
    contract: Mapping[str, Any]
    """Config fields that decide the numbers, by dotted name (`resume_contract.py`)."""
    validation_due: bool = False
    """Whether a resumed run begins with the validation of this step."""

    def stored(self) -> dict[str, object]:
        """Return the entry of a checkpoint under `RECORD_KEY`."""
        return asdict(self)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> CheckpointRecord | None:
        """Read the record of a loaded checkpoint; None if lit_pretrain did not write it."""
        stored = checkpoint.get(RECORD_KEY)
        if not isinstance(stored, Mapping) or not {"step", "contract"} <= stored.keys():
            return None
        return cls(
            int(stored["step"]), stored["contract"], bool(stored.get("validation_due", False))
        )


# ------------------------------------------------------------------ names


def checkpoint_name(step: int) -> str:
    """Name the file (or, sharded, the folder) of the checkpoint after `step` optimizer steps."""
    return f"step={step:08d}.ckpt"


def scratch_of(path: Path) -> Path:
    """Return where a checkpoint is written before it takes its name."""
    return path.with_suffix(".ckpt.tmp")


def step_of(path: Path) -> int | None:
    """Read the step from a checkpoint's name; None for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def artefact_folder(place: str | Path) -> Path:
    """Return the folder of an artefact: the run of a checkpoint, else the folder itself."""
    path = Path(place)
    return path if path.is_dir() and step_of(path) is None else path.parent.parent


def is_hf_folder(path: Path) -> bool:
    """Tell whether a folder is a Hugging Face model: its config.json names a model type."""
    file = path / HF_CONFIG
    return file.is_file() and "model_type" in read_json(file)


def read_json(file: Path) -> Mapping[str, Any]:
    """Read a JSON object that belongs to a model.

    Raises:
        UserError: The file is missing or damaged, or holds something else.
    """
    try:
        loaded = load_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a JSON {type(loaded).__name__}; it must be an object")
    return loaded


# ------------------------------------------------------------------ the checkpoints of a run


def checkpoints(run: Path) -> list[Path]:
    """List all checkpoints of a run, complete or not, oldest first."""
    found = [
        path for path in (run / CHECKPOINTS_FOLDER).glob("step=*.ckpt") if step_of(path) is not None
    ]
    return sorted(found, key=lambda path: step_of(path) or 0)


def newest_complete(
    run: Path,
    warn: Callable[[str], None] = warn,
    fits: Callable[[Path], bool] = lambda path: True,
) -> Path | None:
    """Find the newest complete checkpoint of a run; warn of damaged ones and pass over them.

    Args:
        run: The run's folder.
        warn: Receives the warnings.
        fits: Whether a complete one may be taken.
    """
    for path in reversed(checkpoints(run)):
        if (found := damage(path)) is None:
            if fits(path):
                return path
            continue
        warn(f"checkpoint {path} is torn or damaged: {found}; it is passed over")
    return None


@dataclass(frozen=True)
class BestRecord:
    """Name the checkpoint with the lowest validation loss: the content of best.json."""

    checkpoint: str
    """File name, within the folder of checkpoints."""
    loss: float
    """Its validation loss."""
    step: int


def best_record(run: Path, warn: Callable[[str], None] = warn) -> BestRecord | None:
    """Read best.json; None if there is none.

    A damaged one is rebuilt from the validations in metrics.jsonl, with a warning.
    """
    file = run / CHECKPOINTS_FOLDER / BEST
    if not file.exists():
        return None
    try:
        content = read_sealed_json(file, known=("checkpoint", "loss", "step"))
        found = BestRecord(
            str(content["checkpoint"]), float(content["loss"]), int(content.get("step", -1))
        )
        # It becomes part of a path, and must not lead out of the folder.
        if step_of(Path(found.checkpoint)) is None or Path(found.checkpoint).name != (
            found.checkpoint
        ):
            raise ValueError(f"{found.checkpoint!r} is no checkpoint's name")
    except (UserError, KeyError, TypeError, ValueError) as error:
        warn(f"{file} is damaged ({error}); the best checkpoint is looked up in {METRICS}")
        return best_by_metrics(run)
    return found


def best_by_metrics(run: Path) -> BestRecord | None:
    """Find the checkpoint on disk with the lowest validation loss in metrics.jsonl."""
    kept = {step_of(path): path.name for path in checkpoints(run)}
    validated = [
        BestRecord(kept[step], float(line["val/loss"]), step)
        for line in (read_metrics(run) if (run / METRICS).is_file() else [])
        if "val/loss" in line and (step := int(line["step"])) in kept
    ]
    return min(validated, key=lambda record: record.loss, default=None)


def best(run: Path) -> Path | None:
    """Find the checkpoint with the lowest validation loss among those that are kept.

    Raises:
        UserError: It is damaged.
    """
    record = best_record(run)
    if record is None or not (path := run / CHECKPOINTS_FOLDER / record.checkpoint).exists():
        return None
    check_sound(path)
    return path


def check_sound(path: Path) -> None:
    """Refuse a checkpoint that is torn, damaged, or something else.

    Raises:
        UserError: Says what is wrong with it.
    """
    if (found := damage(path)) is not None:
        raise UserError(
            f"checkpoint {path} is torn, damaged or not a checkpoint: {found}; give another one of"
            " the run"
        )


def resolve(where: str, *, which: str = "last") -> Path:
    """Find the checkpoint that a user names: by its run's folder, or directly.

    Args:
        where: Path or address of a run folder or of one checkpoint. A remote one is fetched.
        which: For a run folder: last or best.

    Raises:
        UserError: There is no such path, it holds no complete checkpoint, the named one is damaged,
            or `which` is neither last nor best.
    """
    if which not in ("last", "best"):
        raise UserError(
            f"--checkpoint={which!r} must be last or best; name a single checkpoint in place of"
            " its run"
        )
    if is_remote(where):
        from lit_pretrain.checkpoint.remote_run import fetched

        return fetched(where, which=which)
    path = Path(where)
    # A folder that is named like a checkpoint is a sharded one, and no run.
    if path.exists() and (step_of(path) is not None or path.is_file()):
        check_sound(path)
        return path
    found = best(path) if which == "best" else newest_complete(path)
    if found is None and (path / HF_CONFIG).is_file():
        raise UserError(
            f"{where} is a Hugging Face folder; make a run of it: lit_pretrain import {where}"
            " runs/NAME"
        )
    if found is None:
        kept = path / CHECKPOINTS_FOLDER
        raise no_run(where, f"it holds no complete checkpoint ({which}) under {kept}; train first")
    return found


def config_of(checkpoint: Path) -> dict[str, Any]:
    """Read the resolved config of the run that a checkpoint belongs to.

    Raises:
        UserError: The checkpoint does not lie in a run folder, or config.yaml is damaged.
    """
    file = checkpoint.parent.parent / CONFIG
    if not file.is_file():
        raise UserError(
            f"{file} is missing, so the network of {checkpoint} is not known; give a run folder"
        )
    config = read_config(file)
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("net"), dict):
        raise UserError(f"{file} is damaged: it has no shape of a network (model.net)")
    for group in ("data", "trainer"):
        if not isinstance(config.get(group), dict):
            raise UserError(f"{file} is damaged: it has no settings of {group!r}")
    return config
