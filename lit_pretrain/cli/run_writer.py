"""Run writer: a run folder that no training made, appearing whole or not at all."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml
from torch import Tensor

from lit_pretrain.callbacks.checkpoint_io import PlainCheckpointIO
from lit_pretrain.checkpoint.contract import KEY
from lit_pretrain.checkpoint.find import FOLDER, checkpoint_name
from lit_pretrain.checkpoint.weights import PREFIX, SCORE
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.data.tokenizer_files import FILENAME
from lit_pretrain.errors import UserError
from lit_pretrain.report.folder import CONFIG, PROVENANCE, provenance, write_whole


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder: filled under another name beside it, then renamed.

    Raises:
        UserError: There is something already, or it cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        fill(scratch)
        os.rename(scratch, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_run(
    out: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    step: int,
    tokenizer: Path,
    facts: Mapping[str, Any],
    record: Mapping[str, Any],
    score: Optional[Tensor] = None,
) -> None:
    """Write a run that others can start from, generate with and measure.

    Args:
        out: The folder; it must not exist.
        config: Its config.yaml.
        tensors: Of the network, by the names of its state dict.
        step: Number of the checkpoint.
        tokenizer: Folder of its tokenizer; a Hugging Face folder may have none.
        facts: For provenance.json, beside versions, revision and command.
        record: Further entries of the checkpoint.
        score: The score head of a reward model.
    """
    has_tokenizer = (tokenizer / FILENAME).is_file()
    contract = {"data.tokenizer": Tokenizer.load(tokenizer).hash} if has_tokenizer else {}

    def fill(folder: Path) -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
        write_whole(folder / CONFIG, text)
        if has_tokenizer:
            Tokenizer.load(tokenizer).save(folder)
        made = provenance(**facts, started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        write_whole(folder / PROVENANCE, json.dumps(made, indent=1) + "\n")
        state = {PREFIX + name: tensor for name, tensor in tensors.items()} | ({} if score is None else {SCORE: score})
        checkpoint = {"state_dict": state, KEY: {"step": step, "contract": contract}, **record}
        PlainCheckpointIO().save_checkpoint(checkpoint, folder / FOLDER / checkpoint_name(step))

    write_folder(out, fill)
