"""Find: the checkpoints of a run, the newest complete one, the best, and the config they belong
to.
"""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import yaml

from lit_pretrain.errors import UserError

CHECKPOINTS_FOLDER = "checkpoints"
BEST = "best.json"
_NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoint_name(step: int) -> str:
    """File (or, sharded, folder) name of the checkpoint after `step` optimizer steps."""
    return f"step={step:08d}.ckpt"


def step_of(path: Path) -> Optional[int]:
    """The step in a checkpoint's name; None for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end: a whole archive, or a folder with both of its
    indexes.

    A torn zip archive lacks its central directory, which is written last and found from the end of
    the file.
    """
    if path.is_dir():
        return (path / ".metadata").is_file() and (path / "meta.pt").is_file()
    return path.is_file() and zipfile.is_zipfile(path)


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, complete or not, oldest first."""
    found = [
        path for path in (run / CHECKPOINTS_FOLDER).glob("step=*.ckpt") if step_of(path) is not None
    ]
    return sorted(found, key=lambda path: step_of(path) or 0)


def newest_complete(run: Path, warn: Callable[[str], None]) -> Optional[Path]:
    """The newest complete checkpoint of a run; torn ones are passed over with a warning."""
    for path in reversed(checkpoints(run)):
        if is_complete(path):
            return path
        warn(f"checkpoint {path} is torn (its writing was cut off); it is passed over")
    return None


def best(run: Path) -> Optional[Path]:
    """The checkpoint with the lowest validation loss among those that are kept."""
    record = run / CHECKPOINTS_FOLDER / BEST
    if not record.is_file():
        return None
    path = run / CHECKPOINTS_FOLDER / json.loads(record.read_text())["checkpoint"]
    return path if is_complete(path) else None


def resolve(where: str, *, which: str = "last") -> Path:
    """A checkpoint from what a user wrote: a run's folder, or a checkpoint itself.

    Args:
        where: Path of a run folder or of one checkpoint.
        which: For a run folder: last or best.

    Raises:
        UserError: There is no such path, it holds no complete checkpoint, or the named one is torn.
    """
    path = Path(where)
    if not path.exists():
        raise UserError(
            f"{where} does not exist; give a run folder such as runs/NAME, or one of its"
            " checkpoints"
        )
    if step_of(path) is not None or path.is_file():
        if not is_complete(path):
            raise UserError(
                f"checkpoint {where} is torn or not a checkpoint; give another one of the run"
            )
        return path
    found = best(path) if which == "best" else newest_complete(path, lambda message: None)
    if found is None and (path / "config.json").is_file():
        raise UserError(
            f"{where} is a Hugging Face folder; make a run of it: lit_pretrain import {where}"
            " runs/NAME"
        )
    if found is None:
        raise UserError(
            f"{where} holds no complete checkpoint ({which}) under {path / CHECKPOINTS_FOLDER};"
            " train the run first"
        )
    return found


def config_of(checkpoint: Path) -> dict[str, Any]:
    """The resolved config of the run that a checkpoint belongs to.

    Raises:
        UserError: The checkpoint does not lie in a run folder.
    """
    file = checkpoint.parent.parent / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{file} is missing, so the network of {checkpoint} is not known; give a run folder"
        )
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded
